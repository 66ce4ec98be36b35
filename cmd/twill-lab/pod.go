package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/test/lab"
)

func (a *app) pod() *cobra.Command {
	var p lab.Pod
	add := &cobra.Command{Use: "add POD", Short: "Add a pod and attach it by the node's CNI configuration", Args: exactly(1),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error {
			p.Name = args[0]
			p, err := l.AddPod(cmd.Context(), p)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), p, func(w io.Writer) { fmt.Fprintf(w, "%s on %s: %s\n", p, p.Node, join(p)) })
		})}
	add.Flags().StringVar(&p.Node, "node", "node-1", "where the pod runs")
	add.Flags().StringVarP(&p.Namespace, "namespace", "n", "default", "Kubernetes namespace of the pod")
	add.Flags().StringToStringVarP(&p.Labels, "labels", "l", nil, "labels of the pod, such as app=web,tier=front")

	var namespace string
	rm := &cobra.Command{Use: "rm POD", Short: "Detach a pod and remove it", Args: exactly(1),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error {
			return l.RemovePod(cmd.Context(), podRef(namespace, args[0]))
		})}
	rm.Flags().StringVarP(&namespace, "namespace", "n", "", "Kubernetes namespace of the pod (default: default, or the one in NAMESPACE/POD)")
	return group("pod", "Add or remove pods", add, rm)
}

// podRef joins --namespace and POD, unless neither or the POD itself names a namespace.
func podRef(namespace, pod string) string {
	if namespace == "" {
		return pod
	}
	return namespace + "/" + pod
}

func (a *app) exec() *cobra.Command {
	var namespace string
	c := &cobra.Command{Use: "exec POD -- COMMAND", Short: "Run a command in a pod", Args: commandArgs(1),
		RunE: a.running(func(cmd *cobra.Command, l *lab.Lab, args []string) (int, error) {
			return l.RunInPod(cmd.Context(), podRef(namespace, args[0]), command(cmd, args[1:]))
		})}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "Kubernetes namespace of the pod (default: default, or the one in NAMESPACE/POD)")
	return c
}

func (a *app) outside() *cobra.Command {
	return group("outside", "Enter the host beyond the nodes, which has no route to any pod",
		&cobra.Command{Use: "exec -- COMMAND", Short: "Run a command on the host beyond the nodes", Args: commandArgs(0),
			RunE: a.running(func(cmd *cobra.Command, l *lab.Lab, args []string) (int, error) {
				return l.RunOutside(cmd.Context(), command(cmd, args))
			})})
}

// commandArgs wants n arguments and then a command after --, whose flags are not ours.
func commandArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if cmd.ArgsLenAtDash() != n || len(args) <= n {
			return usage(fmt.Errorf("usage: %s %s", cmd.Parent().CommandPath(), cmd.Use))
		}
		return nil
	}
}

func command(cmd *cobra.Command, args []string) lab.Command {
	return lab.Command{Args: args, Stdin: cmd.InOrStdin(), Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()}
}

// running turns the outcome of a command into ours; 125 is what other tools use, too, for a command
// that could not be run.
func (a *app) running(f func(*cobra.Command, *lab.Lab, []string) (int, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		l, err := lab.Open(a.name)
		if err != nil {
			return exitCode{code: 125, err: err}
		}
		code, err := f(cmd, l, args)
		if err != nil {
			return exitCode{code: 125, err: err}
		}
		if code != 0 {
			return exitCode{code: code}
		}
		return nil
	}
}

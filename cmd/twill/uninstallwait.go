package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
)

// uninstallWaitCommand waits for what uninstalls on every node. The chart's last hook runs it: Helm itself waits for
// Jobs, but not for DaemonSets.
func uninstallWaitCommand() *cobra.Command {
	var server, namespace string
	var timeout time.Duration
	c := &cobra.Command{
		Use:     "wait DAEMONSET",
		Short:   "Wait, inside the cluster, until a DaemonSet that uninstalls is done on every node",
		Example: "  twill uninstall wait twill-cleanup --namespace twill-system",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := rest.InClusterConfig()
			if err != nil {
				return fmt.Errorf("%w: this command runs in a pod of the chart", err)
			}
			if server != "" {
				config.Host = server
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return waitForDaemonSet(ctx, config, namespace, args[0])
		},
	}
	c.Flags().StringVar(&server, "server", "", "address of the API server, overriding that of the service account")
	c.Flags().StringVar(&namespace, "namespace", "default", "namespace of the DaemonSet")
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait")
	return c
}

// daemonSet is what is read of a DaemonSet (apps/v1).
type daemonSet struct {
	Metadata struct{ Generation int64 }
	Status   struct{ ObservedGeneration, DesiredNumberScheduled, NumberReady int64 }
}

func waitForDaemonSet(ctx context.Context, config *rest.Config, namespace, name string) error {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	url := config.Host + "/apis/apps/v1/namespaces/" + namespace + "/daemonsets/" + name
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		d, err := getDaemonSet(ctx, client, url)
		if err == nil {
			if d.Status.ObservedGeneration >= d.Metadata.Generation && d.Status.NumberReady == d.Status.DesiredNumberScheduled {
				return nil
			}
			err = fmt.Errorf("%d of %d nodes are done; see kubectl -n %s get pods", d.Status.NumberReady, d.Status.DesiredNumberScheduled, namespace)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("DaemonSet %s/%s: %w; a node that is down is cleaned by `twill uninstall` when it is back", namespace, name, err)
		case <-tick.C:
		}
	}
}

func getDaemonSet(ctx context.Context, client *http.Client, url string) (d daemonSet, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return d, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return d, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return d, err
	}
	if resp.StatusCode != http.StatusOK {
		return d, errors.New(resp.Status)
	}
	return d, json.Unmarshal(body, &d)
}

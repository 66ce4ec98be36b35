package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startControlPlane starts etcd, API server, controller manager and scheduler, and waits for the API server.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := os.WriteFile(c.path("audit.yaml"), []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	if err := c.StartEtcd(); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	return c.StartControllers()
}

// StartControllers starts controller manager and scheduler.
func (c *Cluster) StartControllers() error {
	if _, err := c.spawnControl("kube-controller-manager", "--kubeconfig="+c.Kubeconfig("controller-manager"),
		"--authentication-kubeconfig="+c.Kubeconfig("controller-manager"), "--authorization-kubeconfig="+c.Kubeconfig("controller-manager"),
		"--leader-elect=false", "--bind-address=127.0.0.1", "--allocate-node-cidrs",
		"--cluster-cidr="+c.families(PodCIDR, PodCIDR6), "--service-cluster-ip-range="+c.families(serviceCIDR, serviceCIDR6),
		"--cluster-signing-cert-file="+c.pki("ca.crt"), "--cluster-signing-key-file="+c.pki("ca.key"), "--root-ca-file="+c.pki("ca.crt"),
		"--service-account-private-key-file="+c.pki("sa.key"), "--use-service-account-credentials",
		// A node that is gone is noticed within seconds, not minutes.
		"--node-monitor-period=2s", "--node-monitor-grace-period="+patiently(20*time.Second)); err != nil {
		return err
	}
	_, err := c.spawnControl("kube-scheduler", "--kubeconfig="+c.Kubeconfig("scheduler"),
		"--authentication-kubeconfig="+c.Kubeconfig("scheduler"), "--authorization-kubeconfig="+c.Kubeconfig("scheduler"),
		"--leader-elect=false", "--bind-address=127.0.0.1")
	return err
}

// spawnControl starts a program in the network namespace of the control plane.
func (c *Cluster) spawnControl(name string, args ...string) (*process, error) {
	return c.spawnBeside(c.Programs.path(name), args...)
}

// spawnBeside starts another program there.
func (c *Cluster) spawnBeside(program string, args ...string) (*process, error) {
	return c.spawn(filepath.Base(program), append([]string{"nsenter", "--net=" + netnsPath(c.namespace("cp")), program}, args...)...)
}

// StartEtcd starts etcd.
func (c *Cluster) StartEtcd() error {
	_, err := c.spawnControl("etcd", "--data-dir="+c.path("etcd"), "--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
		"--unsafe-no-fsync", "--log-level=warn")
	return err
}

// StartAPIServer starts the API server and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	api, err := c.spawnControl("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address="+controlPlaneIP, "--advertise-address="+controlPlaneIP, "--secure-port=6443",
		"--service-cluster-ip-range="+c.families(serviceCIDR, serviceCIDR6),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--client-ca-file="+c.pki("ca.crt"), "--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"),
		"--kubelet-client-certificate="+c.pki("apiserver-kubelet.crt"), "--kubelet-client-key="+c.pki("apiserver-kubelet.key"),
		"--kubelet-certificate-authority="+c.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.pki("sa.pub"), "--service-account-signing-key-file="+c.pki("sa.key"),
		"--requestheader-client-ca-file="+c.pki("front-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file="+c.pki("front.crt"), "--proxy-client-key-file="+c.pki("front.key"), "--enable-aggregator-routing",
		// Who asked for what, and was it allowed: what the roles of the chart are compared with.
		"--audit-policy-file="+c.path("audit.yaml"), "--audit-log-path="+c.AuditLog(), "--audit-log-mode=blocking-strict",
	)
	if err != nil {
		return err
	}
	return Eventually(ctx, upTimeout, func(ctx context.Context) error {
		select {
		case <-api.done:
			return errors.New("kube-apiserver ended")
		default:
		}
		_, err := c.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
}

// AuditLog is what the API server writes down of every request of service accounts: one JSON object a line.
func (c *Cluster) AuditLog() string { return c.path("audit.log") }

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
# A watch counts from its start: it has no end yet.
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: [system:serviceaccounts:twill-system]
- level: None
`

// StopControl ends one program of the control plane: kube-apiserver, etcd, …
func (c *Cluster) StopControl(name string) error {
	p := c.process(name)
	if p == nil {
		return fmt.Errorf("no %s runs", name)
	}
	p.stop(syscall.SIGKILL)
	return nil
}

// ControlCommand is a command that will run in the control plane's network namespace, with the programs of the
// cluster first in its PATH and the admin's kubeconfig.
func (c *Cluster) ControlCommand(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + netnsPath(c.namespace("cp")), "env",
		"KUBECONFIG=" + c.Kubeconfig("admin"), "PATH=" + c.Programs.Dir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HELM_CACHE_HOME=" + c.path("helm"), "HELM_CONFIG_HOME=" + c.path("helm"), "HELM_DATA_HOME=" + c.path("helm"),
	}, argv...)...)
}

// ControlNetNS is the path of the control plane's network namespace.
func (c *Cluster) ControlNetNS() string { return netnsPath(c.namespace("cp")) }

// Kubectl runs kubectl as the admin and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlStdin(ctx, "", args...)
}

// KubectlStdin is Kubectl with something to read, such as a manifest for `apply -f -`.
func (c *Cluster) KubectlStdin(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.control(ctx, stdin, append([]string{"kubectl"}, args...)...)
}

// Helm runs helm as the admin.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	return c.control(ctx, "", append([]string{"helm"}, args...)...)
}

func (c *Cluster) control(ctx context.Context, stdin string, argv ...string) (string, error) {
	cmd := c.ControlCommand(ctx, argv...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(argv[0]), strings.Join(argv[1:], " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// Shell is what to type to run one of the cluster's programs as the admin.
func (c *Cluster) Shell(program string) string {
	return strings.Join([]string{"nsenter --net=" + netnsPath(c.namespace("cp")), c.Programs.path(program), "--kubeconfig", c.Kubeconfig("admin")}, " ")
}

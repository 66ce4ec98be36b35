package agent

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/flows"
)

// Config is everything that can be set. Each field is one flag; the same name is a key of the
// configuration file and, in capitals with TWILL_ before it, an environment variable. A flag wins over
// the environment, the environment over the file.
type Config struct {
	NodeName   string
	Kubeconfig string
	Server     string
	Manifests  string

	Bridge       string
	OVSDB        string
	OVSRunDir    string
	DatapathType string

	TunnelType      string
	TunnelPort      uint16
	VNI             uint32
	TunnelAddress   string
	TunnelInterface string
	MTU             int

	ClusterCIDRs      []string
	NoMasqueradeCIDRs []string
	Gateway           string
	ProcSys           string

	ServiceProxy string
	ServiceCIDRs []string
	// NodePortAddresses are the ranges of node addresses at which node ports are served; empty means all.
	NodePortAddresses []string

	CNIPlugin   string
	CNIBinDir   string
	CNIConfDir  string
	CNIConfName string
	CNISocket   string
	Portmap     string
	Bandwidth   bool

	AdminSocket   string
	HTTPAddress   string
	LogLevel      string
	LogFormat     string
	AuditInterval time.Duration
	ProbeInterval time.Duration
	Cooldown      time.Duration
}

// EnvPrefix stands before the name of a flag in its environment variable.
const EnvPrefix = "TWILL_"

// DefaultAdminSocket is where the agent listens for the operator's tools.
const DefaultAdminSocket = "/run/twill/agent.sock"

// Flags declares one flag for each field of the configuration.
func (c *Config) Flags(f *pflag.FlagSet) {
	hostname, _ := os.Hostname()
	f.StringVar(&c.NodeName, "node-name", hostname, "name of this node's Node object")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig file; empty uses the service account of the pod")
	f.StringVar(&c.Server, "server", "", "address of the API server, overriding the kubeconfig or service account")
	f.StringVar(&c.Manifests, "manifests", "", "directory of Kubernetes manifests to use instead of an API server")
	f.StringVar(&c.Bridge, "bridge", "br-twill", "name of the OVS bridge, owned by Twill entirely")
	f.StringVar(&c.OVSRunDir, "ovs-rundir", ovsRunDir(), "directory of the sockets of Open vSwitch")
	f.StringVar(&c.OVSDB, "ovsdb", "", "OVSDB endpoint; empty means unix:OVS-RUNDIR/db.sock")
	f.StringVar(&c.DatapathType, "datapath-type", "auto", "system (kernel), netdev (userspace), or auto: system where OVS offers it")
	f.StringVar(&c.TunnelType, "tunnel-type", string(flows.Geneve), "geneve or vxlan, the same on every node")
	f.Uint16Var(&c.TunnelPort, "tunnel-port", 0, "UDP port of the tunnel; 0 means 6081 for geneve (RFC 8926), 4789 for vxlan (RFC 7348)")
	f.Uint32Var(&c.VNI, "vni", 7, "virtual network identifier, 1 to 16777215, the same on every node")
	f.StringVar(&c.TunnelAddress, "tunnel-address", "", "this node's end of the tunnel; empty means the first InternalIP that a local link carries")
	f.StringVar(&c.TunnelInterface, "tunnel-interface", "", "link whose address is this node's end of the tunnel")
	f.IntVar(&c.MTU, "mtu", 0, "MTU of pods in bytes; 0 means that of the underlay less 50 (IPv4) or 70 (IPv6)")
	f.StringSliceVar(&c.ClusterCIDRs, "cluster-cidr", nil, "range all podCIDRs are taken from, at most one of each family; with it host routes do not grow with the nodes")
	f.StringSliceVar(&c.NoMasqueradeCIDRs, "no-masquerade-cidr", nil, "destinations that see the address of the pod, besides pods and nodes")
	f.StringVar(&c.Gateway, "gateway", "twill0", "name of the host's own port on the bridge")
	f.StringVar(&c.ProcSys, "proc-sys", "/proc/sys", "where sysctls are written; in a container, whose own /proc/sys is read-only, a mount of the host's")
	f.StringVar(&c.ServiceProxy, "service-proxy", "on", "on: Services are served here, kube-proxy is not needed; off: another proxy does it")
	f.StringSliceVar(&c.ServiceCIDRs, "service-cidr", nil, "range ClusterIPs are taken from, at most one of each family; with it addresses that no Service has are rejected at once")
	f.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "ranges; node ports are served at those addresses of the node that lie in one, in a family without a range at all")
	f.StringVar(&c.CNIPlugin, "cni-plugin", "/usr/local/bin/twill-cni", "plugin to install for the container runtime; empty installs nothing")
	f.StringVar(&c.CNIBinDir, "cni-bin-dir", "/opt/cni/bin", "where the container runtime looks for plugins")
	f.StringVar(&c.CNIConfDir, "cni-conf-dir", "/etc/cni/net.d", "where the container runtime looks for network configurations")
	f.StringVar(&c.CNIConfName, "cni-conf-name", "05-twill.conflist", "file name of Twill's network configuration")
	f.StringVar(&c.CNISocket, "cni-socket", "/run/twill/cni.sock", "socket of the CNI plugin")
	f.StringVar(&c.Portmap, "cni-portmap", "auto", "chain the reference plugin portmap, for hostPort: auto (where it stands in --cni-bin-dir), true or false")
	f.BoolVar(&c.Bandwidth, "cni-bandwidth", false, "chain the reference plugin bandwidth; it must stand in --cni-bin-dir")
	f.StringVar(&c.AdminSocket, "admin-socket", DefaultAdminSocket, "socket of the operator's tools")
	f.StringVar(&c.HTTPAddress, "http-address", "127.0.0.1:9455", "address of /metrics, /livez and /readyz")
	f.StringVar(&c.LogLevel, "log-level", "info", "error, warning, info, debug or trace")
	f.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	f.DurationVar(&c.AuditInterval, "audit-interval", 30*time.Second, "how often the whole flow table is read back")
	f.DurationVar(&c.ProbeInterval, "probe-interval", 10*time.Second, "how often each peer is probed through the tunnel")
	f.DurationVar(&c.Cooldown, "address-cooldown", 30*time.Second, "how long a pod's address rests before it is used again")
}

func ovsRunDir() string {
	if d := os.Getenv("OVS_RUNDIR"); d != "" {
		return d
	}
	return "/var/run/openvswitch"
}

// Load fills every flag that the command line left alone from the environment (lookup, normally
// os.LookupEnv) or the file. An unknown key of the file is an error that names it.
func Load(f *pflag.FlagSet, file string, lookup func(string) (string, bool)) error {
	values := map[string]any{}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("configuration file: %w", err)
		}
		if err := yaml.Unmarshal(text, &values); err != nil {
			return fmt.Errorf("configuration file %s: %w; it is a YAML map from flag names to values", file, err)
		}
	}
	var err error
	f.VisitAll(func(x *pflag.Flag) {
		fromFile, inFile := values[x.Name]
		delete(values, x.Name)
		if err != nil || x.Changed {
			return
		}
		env := EnvPrefix + strings.ToUpper(strings.ReplaceAll(x.Name, "-", "_"))
		if v, ok := lookup(env); ok {
			if e := f.Set(x.Name, v); e != nil {
				err = fmt.Errorf("environment %s=%q: %w", env, v, e)
			}
			return
		}
		if inFile {
			if e := f.Set(x.Name, fileValue(fromFile)); e != nil {
				err = fmt.Errorf("configuration file %s: %s: %v: %w", file, x.Name, fromFile, e)
			}
		}
	})
	if err != nil {
		return err
	}
	for k := range values {
		return fmt.Errorf("configuration file %s: unknown key %q; see `twill agent --help` for the names", file, k)
	}
	return nil
}

func fileValue(v any) string {
	if list, ok := v.([]any); ok {
		var parts []string
		for _, x := range list {
			parts = append(parts, fmt.Sprint(x))
		}
		return strings.Join(parts, ",")
	}
	if n, ok := v.(float64); ok {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprint(v)
}

// settings are the values of a Config in the types that the agent works with.
type settings struct {
	clusterCIDRs, noMasquerade []netip.Prefix
	serviceCIDRs               []netip.Prefix
	nodePortAddresses          []netip.Prefix
	tunnelAddress              netip.Addr
	tunnelType                 flows.TunnelType
	tunnelPort                 uint16
}

// resolve checks every field; the error names the field, its value and what to set instead.
func (c *Config) resolve() (settings, error) {
	var s settings
	bad := func(field, value, remedy string) (settings, error) {
		return settings{}, fmt.Errorf("--%s %q: %s", field, value, remedy)
	}
	if c.NodeName == "" {
		return bad("node-name", "", "set it to the name of this node's Node object (kubectl get nodes)")
	}
	s.tunnelType = flows.TunnelType(c.TunnelType)
	switch s.tunnelType {
	case flows.Geneve:
		s.tunnelPort = 6081
	case flows.VXLAN:
		s.tunnelPort = 4789
	default:
		return bad("tunnel-type", c.TunnelType, "use geneve or vxlan")
	}
	if c.TunnelPort != 0 {
		s.tunnelPort = c.TunnelPort
	}
	if c.VNI == 0 || c.VNI >= 1<<24 {
		return bad("vni", fmt.Sprint(c.VNI), "use a number from 1 to 16777215")
	}
	if c.TunnelAddress != "" {
		a, err := netip.ParseAddr(c.TunnelAddress)
		if err != nil {
			return bad("tunnel-address", c.TunnelAddress, "use an IPv4 or IPv6 address of this node")
		}
		s.tunnelAddress = a.Unmap()
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		return bad("mtu", fmt.Sprint(c.MTU), "use 0 to detect it, or 1280 (the least that IPv6 allows, RFC 8200 §5) to 65535")
	}
	if !slices.Contains([]string{"auto", "system", "netdev"}, c.DatapathType) {
		return bad("datapath-type", c.DatapathType, "use auto, system or netdev")
	}
	var err error
	if s.clusterCIDRs, err = prefixes("cluster-cidr", c.ClusterCIDRs); err != nil {
		return settings{}, err
	}
	if len(s.clusterCIDRs) > 2 || len(s.clusterCIDRs) == 2 && s.clusterCIDRs[0].Addr().Is4() == s.clusterCIDRs[1].Addr().Is4() {
		return bad("cluster-cidr", strings.Join(c.ClusterCIDRs, ","), "give at most one range of each family")
	}
	if c.ServiceProxy != "on" && c.ServiceProxy != "off" {
		return bad("service-proxy", c.ServiceProxy, "use on, or off where kube-proxy or another proxy serves Services")
	}
	if s.serviceCIDRs, err = prefixes("service-cidr", c.ServiceCIDRs); err != nil {
		return settings{}, err
	}
	for _, a := range s.serviceCIDRs {
		for _, b := range s.clusterCIDRs {
			if a.Overlaps(b) {
				return bad("service-cidr", a.String(), "it overlaps --cluster-cidr "+b.String()+"; give the ranges that the API server and the controller manager were given")
			}
		}
	}
	if s.nodePortAddresses, err = prefixes("nodeport-addresses", c.NodePortAddresses); err != nil {
		return settings{}, err
	}
	if !slices.Contains([]string{"auto", "true", "false"}, c.Portmap) {
		return bad("cni-portmap", c.Portmap, "use auto, true or false")
	}
	if s.noMasquerade, err = prefixes("no-masquerade-cidr", c.NoMasqueradeCIDRs); err != nil {
		return settings{}, err
	}
	for _, n := range []struct{ field, name string }{{"bridge", c.Bridge}, {"gateway", c.Gateway}} {
		if n.name == "" || len(n.name) > 15 || strings.ContainsAny(n.name, "/ \t") {
			return bad(n.field, n.name, "use 1 to 15 characters without space or slash, as for any Linux link")
		}
	}
	if c.Bridge == c.Gateway {
		return bad("gateway", c.Gateway, "choose a name other than the bridge's")
	}
	for _, p := range []struct{ field, path string }{{"cni-socket", c.CNISocket}, {"admin-socket", c.AdminSocket}} {
		if !filepath.IsAbs(p.path) || len(p.path) > 107 {
			return bad(p.field, p.path, "use an absolute path of at most 107 bytes (unix(7))")
		}
	}
	if _, _, err := net.SplitHostPort(c.HTTPAddress); err != nil {
		return bad("http-address", c.HTTPAddress, "use ADDRESS:PORT, for instance 127.0.0.1:9455")
	}
	if _, err := logrus.ParseLevel(c.LogLevel); err != nil {
		return bad("log-level", c.LogLevel, "use error, warning, info, debug or trace")
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return bad("log-format", c.LogFormat, "use text or json")
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"audit-interval", c.AuditInterval}, {"probe-interval", c.ProbeInterval}} {
		if d.value < time.Second {
			return bad(d.field, d.value.String(), "use one second or more")
		}
	}
	if c.Cooldown < 0 {
		return bad("address-cooldown", c.Cooldown.String(), "use zero or more")
	}
	if c.OVSDB == "" {
		c.OVSDB = "unix:" + filepath.Join(c.OVSRunDir, "db.sock")
	}
	return s, nil
}

func prefixes(field string, values []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, v := range values {
		p, err := netip.ParsePrefix(v)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("--%s %q: use ranges like 198.18.0.0/16 or 2001:db8:42::/48, without host bits", field, v)
		}
		out = append(out, p)
	}
	return out, nil
}

// portmap is whether hostPort is served by the reference plugin: the runtime fails each pod if a plugin of the chain is missing,
// so by default it is chained only where it is.
func (c *Config) portmap() bool {
	if c.Portmap != "auto" {
		return c.Portmap == "true"
	}
	info, err := os.Stat(filepath.Join(c.CNIBinDir, "portmap"))
	return err == nil && info.Mode().IsRegular()
}

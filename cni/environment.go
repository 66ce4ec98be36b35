package cni

import (
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"
)

// environment reads the CNI_* variables of req.Command into req. Other than the specification's
// reference code it leaves CNI_PATH alone: nothing is delegated.
func environment(getenv func(string) string, req *Request) error {
	if !slices.Contains([]string{CommandAdd, CommandDel, CommandCheck, CommandGC, CommandStatus}, req.Command) {
		return Errorf(ErrInvalidEnvironment, "CNI_COMMAND %q is not a command", req.Command).
			Advise("set it to one of ADD, DEL, CHECK, GC, STATUS, VERSION")
	}
	if req.Command == CommandGC || req.Command == CommandStatus {
		return nil
	}
	var missing []string
	for _, v := range []struct {
		name     string
		into     *string
		required bool
	}{
		{"CNI_CONTAINERID", &req.ContainerID, true},
		{"CNI_NETNS", &req.NetNS, req.Command != CommandDel},
		{"CNI_IFNAME", &req.IfName, true},
		{"CNI_ARGS", &req.Args, false},
	} {
		*v.into = getenv(v.name)
		if *v.into == "" && v.required {
			missing = append(missing, v.name)
		}
	}
	if len(missing) > 0 {
		return Errorf(ErrInvalidEnvironment, "%s of the environment must not be empty for %s", strings.Join(missing, ", "), req.Command).
			Advise("the runtime must set them, see the CNI specification")
	}
	if err := utils.ValidateContainerID(req.ContainerID); err != nil {
		return invalid("CNI_CONTAINERID", req.ContainerID, err)
	}
	if err := utils.ValidateInterfaceName(req.IfName); err != nil {
		return invalid("CNI_IFNAME", req.IfName, err)
	}
	pod, err := parseArgs(req.Args)
	if err != nil && req.Command != CommandDel {
		return err
	}
	req.Pod = pod
	return nil
}

func invalid(name, value string, err *types.Error) error {
	return Errorf(ErrInvalidEnvironment, "%s %q is invalid: %s", name, value, err.Msg).
		Advise("the runtime must set it as the CNI specification says")
}

// parseArgs finds the Kubernetes pod in CNI_ARGS, "KEY=VALUE;KEY=VALUE". Other keys are the agent's
// business. The PodRef holds what could be read also when there is an error.
func parseArgs(args string) (pod PodRef, err error) {
	into := map[string]*string{
		"K8S_POD_NAMESPACE":          &pod.Namespace,
		"K8S_POD_NAME":               &pod.Name,
		"K8S_POD_UID":                &pod.UID,
		"K8S_POD_INFRA_CONTAINER_ID": &pod.Sandbox,
	}
	for pair := range strings.SplitSeq(args, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok && pair != "" {
			err = Errorf(ErrInvalidEnvironment, "CNI_ARGS %q is invalid: %q is not KEY=VALUE", args, pair).
				Advise("the runtime must pass pairs separated by semicolons")
		}
		if field := into[key]; ok && field != nil {
			*field = value
		}
	}
	return pod, err
}

// openNetNS opens the network namespace of a pod. Being the plugin's own namespace is an error, as an
// interface would be moved into the host's, unless the runtime overrides (CNI_NETNS_OVERRIDE is an
// agreement of the CNI libraries).
func openNetNS(path string, override bool) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, Errorf(ErrInvalidNetNS, "CNI_NETNS %q cannot be opened: %w", path, err).
			Advise("the sandbox is probably gone: the runtime must make a new one")
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, Errorf(ErrInvalidNetNS, "CNI_NETNS %q is not a network namespace", path).
			Advise("the sandbox is probably gone: the runtime must make a new one")
	}
	if override {
		return f, nil
	}
	theirs, err := f.Stat()
	if err == nil {
		var ours os.FileInfo
		if ours, err = os.Stat("/proc/self/ns/net"); err == nil && !os.SameFile(ours, theirs) {
			return f, nil
		}
	}
	f.Close()
	if err != nil {
		return nil, Errorf(ErrInvalidNetNS, "CNI_NETNS %q: %w", path, err)
	}
	return nil, Errorf(ErrInvalidNetNS, "CNI_NETNS %q is the network namespace of the plugin itself", path).
		Advise("the runtime must pass the namespace of the sandbox; pods with hostNetwork are not attached")
}

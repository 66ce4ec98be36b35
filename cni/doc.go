// Package cni is the CNI plugin of Twill and the wire between it and the agent of the node.
//
// The plugin carries messages, the agent decides. A container runtime executes twill-cni once for
// each command; the plugin checks what the CNI specification wants checked (environment, network
// configuration, versions, prevResult), opens the network namespace of the pod, and asks the agent
// over a unix socket. What the agent answers becomes a CNI result, or a CNI error, in the version of
// the specification that the network configuration names: 0.3.1, 0.4.0, 1.0.0 or 1.1.0.
//
// # The wire
//
// One connection per command. The plugin sends one [Request] as one line of JSON, and with its first
// byte (SCM_RIGHTS) the file descriptor of the pod's network namespace if the command is ADD or CHECK:
// the agent needs neither the host's PID namespace nor mount propagation. The agent answers with one
// line, a [Response]. Both carry [WireVersion]; whoever sees a version it does not speak says which
// side to upgrade. The socket is root's own: mode 0600, and the peer's uid is checked on top.
//
// # Workflow
//
// The agent calls [Serve] with a [Handler], and, once it is ready to serve, [Install] with what
// [Conflist] made: plugin first, network configuration last, since the runtime reports the node as
// ready when it finds one. cmd/twill-cni calls [Main].
//
// # When the agent is away
//
// ADD, DEL, CHECK and GC fail with error 11, "try again later", within a second; the runtime repeats
// them, so no DEL is lost. STATUS fails with error 50, "plugin not available". VERSION needs no agent.
// An agent that is there but does not answer is given up after [Timeout].
//
// # Gotchas
//
//   - The context of a Handler ends when the plugin goes away: a runtime that was killed, or a plugin
//     that ran into its timeout, will repeat the command or send DEL. Leave nothing half made.
//   - DEL gets no network namespace: it may be gone. It must succeed for what is not there.
//   - GC without a list of valid attachments is refused, not read as "none is valid".
//   - The library's skel is not used: it reads the process's own environment and standard input, checks
//     the network namespace only after ADD, and prints errors without cniVersion.
//
// To watch the wire: the agent logs a line per command; to send one by hand,
//
//	echo '{"cniVersion":"1.1.0","name":"twill","type":"twill-cni"}' | CNI_COMMAND=STATUS CNI_PATH=/opt/cni/bin twill-cni
package cni

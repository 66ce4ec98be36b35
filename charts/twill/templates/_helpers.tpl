{{- define "twill.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "twill.labels" -}}
app.kubernetes.io/name: twill
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What the agent and `twill uninstall` are told. Keys are the flags of the agent. */ -}}
{{- define "twill.config" -}}
bridge: {{ .Values.bridge }}
datapath-type: {{ .Values.datapath }}
ovs-rundir: /run/openvswitch
tunnel-type: {{ .Values.tunnel.type }}
tunnel-port: {{ .Values.tunnel.port }}
vni: {{ .Values.tunnel.vni }}
tunnel-interface: {{ .Values.tunnel.interface | quote }}
mtu: {{ .Values.mtu }}
cluster-cidr: {{ .Values.clusterCIDRs | toJson }}
no-masquerade-cidr: {{ .Values.noMasqueradeCIDRs | toJson }}
service-proxy: {{ .Values.serviceProxy | quote }}
nodeport-addresses: {{ .Values.nodePortAddresses | toJson }}
server: {{ .Values.apiServer | quote }}
cni-plugin: /usr/local/bin/twill-cni
cni-bin-dir: /host/cni/bin
cni-conf-dir: /host/cni/net.d
cni-conf-name: {{ .Values.cni.confName }}
cni-portmap: {{ .Values.cni.portmap | toString | quote }}
cni-bandwidth: {{ .Values.cni.bandwidth }}
proc-sys: /host/proc/sys
http-address: {{ .Values.agent.httpAddress | quote }}
log-level: {{ .Values.agent.logLevel }}
log-format: {{ .Values.agent.logFormat }}
audit-interval: {{ .Values.agent.auditInterval }}
probe-interval: {{ .Values.agent.probeInterval }}
address-cooldown: {{ .Values.agent.addressCooldown }}
{{- end }}

{{- /* What every pod of the chart has. */ -}}
{{- define "twill.pod" -}}
hostNetwork: true
dnsPolicy: Default
priorityClassName: {{ .Values.priorityClassName }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- /* The directories of the node that the agent, and whoever takes it away, works on. */ -}}
{{- define "twill.mounts" -}}
- name: config
  mountPath: /etc/twill
  readOnly: true
- name: run
  mountPath: /run/twill
- name: openvswitch
  mountPath: /run/openvswitch
- name: cni-bin
  mountPath: /host/cni/bin
- name: cni-conf
  mountPath: /host/cni/net.d
- name: sysctl
  mountPath: /host/proc/sys/net
{{- end }}

{{- define "twill.volumes" -}}
- name: config
  configMap:
    name: {{ .config }}
- name: run
  hostPath:
    path: /run/twill
    type: DirectoryOrCreate
- name: openvswitch
  hostPath:
    path: {{ .Values.ovs.runDir }}
    type: DirectoryOrCreate
- name: cni-bin
  hostPath:
    path: {{ .Values.cni.binDir }}
    type: DirectoryOrCreate
- name: cni-conf
  hostPath:
    path: {{ .Values.cni.confDir }}
    type: DirectoryOrCreate
# The container's own /proc/sys is read-only.
- name: sysctl
  hostPath:
    path: /proc/sys/net
    type: Directory
{{- end }}

{{- define "twill.capabilities" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
runAsUser: 0
capabilities:
  drop: [ALL]
  add:
    # Links, addresses, routes, neighbours, nftables.
    - NET_ADMIN
    # The probes of other nodes (raw ICMP sockets).
    - NET_RAW
    # Entering the network namespace of a pod to configure its interface: setns(2).
    - SYS_ADMIN
{{- end }}

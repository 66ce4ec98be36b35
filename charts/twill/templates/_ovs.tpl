{{- /* The two daemons of Open vSwitch: containers of the DaemonSet twill-ovs, sidecars of whoever takes Twill off. */ -}}
{{- define "twill.ovs.containers" -}}
- name: ovsdb-server
  image: {{ include "twill.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [ovs, db]
  {{- if .sidecar }}
  restartPolicy: Always
  {{- end }}
  readinessProbe:
    exec:
      command: [ovsdb-client, --timeout=3, list-dbs, "unix:/run/openvswitch/db.sock"]
    periodSeconds: 10
    timeoutSeconds: 5
  resources:
    {{- toYaml .root.Values.ovs.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsUser: 0
    capabilities:
      drop: [ALL]
  volumeMounts:
    - name: openvswitch
      mountPath: /run/openvswitch
    - name: ovs-db
      mountPath: /etc/openvswitch
    # ovsdb-server keeps what it was told at run time in a temporary file.
    - name: ovs-tmp
      mountPath: /tmp
- name: ovs-vswitchd
  image: {{ include "twill.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [ovs, switch]
  {{- if .sidecar }}
  restartPolicy: Always
  {{- end }}
  readinessProbe:
    exec:
      command: [ovs-appctl, --timeout=3, -t, ovs-vswitchd, version]
    periodSeconds: 10
    timeoutSeconds: 5
  resources:
    {{- toYaml .root.Values.ovs.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsUser: 0
    capabilities:
      drop: [ALL]
      add:
        # The kernel's datapath, and links.
        - NET_ADMIN
        # Packet sockets of the userspace datapath.
        - NET_RAW
  volumeMounts:
    - name: openvswitch
      mountPath: /run/openvswitch
    - name: ovs-db
      mountPath: /etc/openvswitch
    {{- if ne .root.Values.datapath "system" }}
    # Internal ports of the userspace datapath are tap devices.
    - name: tun
      mountPath: /dev/net/tun
    {{- end }}
{{- end }}

{{- define "twill.ovs.volumes" -}}
{{- if not .shared }}
- name: openvswitch
  hostPath:
    path: {{ .Values.ovs.runDir }}
    type: DirectoryOrCreate
{{- end }}
- name: ovs-db
  hostPath:
    path: {{ .Values.ovs.dbDir }}
    type: DirectoryOrCreate
- name: ovs-tmp
  emptyDir: {}
{{- if ne .Values.datapath "system" }}
- name: tun
  hostPath:
    path: /dev/net/tun
    type: CharDevice
{{- end }}
{{- end }}

{{- define "gantry-virtual-kubelet.name" -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "gantry-virtual-kubelet.prefix" -}}
{{ .Values.nodeNamePrefix | default (include "gantry-virtual-kubelet.name" .) }}
{{- end }}

{{- define "gantry-virtual-kubelet.selector" -}}
app.kubernetes.io/name: gantry-virtual-kubelet
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gantry-virtual-kubelet.labels" -}}
{{ include "gantry-virtual-kubelet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

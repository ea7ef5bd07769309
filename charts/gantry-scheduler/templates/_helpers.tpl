{{- define "gantry-scheduler.name" -}}
{{- if eq .Release.Name "kube-scheduler" }}
{{- fail "a release named kube-scheduler would share the Lease of the cluster's own scheduler: choose another name" }}
{{- end }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "gantry-scheduler.schedulerName" -}}
{{ .Values.schedulerName | default (include "gantry-scheduler.name" .) }}
{{- end }}

{{- define "gantry-scheduler.selector" -}}
app.kubernetes.io/name: gantry-scheduler
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gantry-scheduler.labels" -}}
{{ include "gantry-scheduler.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The name of everything the release has. */}}
{{- define "gantry-scheduler.name" -}}
{{- if and (eq (.Values.fullnameOverride | default .Release.Name) "kube-scheduler") (eq .Values.mode "second") }}
{{- fail "a release named kube-scheduler would share the Lease of the cluster's own scheduler: choose another name, or mode=replacement" }}
{{- end }}
{{- .Values.fullnameOverride | default .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "gantry-scheduler.selector" -}}
app.kubernetes.io/name: gantry-scheduler
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gantry-scheduler.labels" -}}
{{ include "gantry-scheduler.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: gantry
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "gantry-scheduler.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "gantry-scheduler.name" .) }}
{{- else }}
{{- required "serviceAccount.name: name the account, as serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The image by its digest where one is given, by its tag otherwise. */}}
{{- define "gantry-scheduler.image" -}}
{{- $repository := required "image.repository: give the image of kube-scheduler, e.g. --set image.repository=registry.example.com/kube-scheduler" .Values.image.repository }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (.Values.image.tag | default (printf "v%s" .Chart.AppVersion)) }}
{{- end }}
{{- end }}

{{- define "gantry-scheduler.schedulerName" -}}
{{- if eq .Values.mode "replacement" }}
{{- .Values.schedulerName | default "default-scheduler" }}
{{- else }}
{{- .Values.schedulerName | default (include "gantry-scheduler.name" .) }}
{{- end }}
{{- end }}

{{/* In the place of the cluster's own: its Lease, so that one of the two leads. */}}
{{- define "gantry-scheduler.lease" -}}
{{- if eq .Values.mode "replacement" }}kube-scheduler{{ else }}{{ include "gantry-scheduler.name" . }}{{ end }}
{{- end }}

{{- define "gantry-scheduler.leaseNamespace" -}}
{{- if eq .Values.mode "replacement" }}kube-system{{ else }}{{ .Release.Namespace }}{{ end }}
{{- end }}

{{/* The name of everything the release has. */}}
{{- define "gantry-kube-proxy.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "gantry-kube-proxy.selector" -}}
app.kubernetes.io/name: gantry-kube-proxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gantry-kube-proxy.labels" -}}
{{ include "gantry-kube-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: gantry
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "gantry-kube-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "gantry-kube-proxy.name" .) }}
{{- else }}
{{- required "serviceAccount.name: name the account, as serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The image by its digest where one is given, by its tag otherwise. */}}
{{- define "gantry-kube-proxy.image" -}}
{{- $repository := required "image.repository: give the image of kube-proxy, e.g. --set image.repository=registry.example.com/kube-proxy" .Values.image.repository }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (.Values.image.tag | default (printf "v%s" .Chart.AppVersion)) }}
{{- end }}
{{- end }}

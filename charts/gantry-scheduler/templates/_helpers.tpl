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

{{/* The plugins beyond the default profile that are on: name, value's name. */}}
{{- define "gantry-scheduler.extras" -}}
{{- $on := list }}
{{- range $name, $key := dict "CapacityScheduling" "capacityScheduling" "Coscheduling" "coscheduling" "LoadVariationRiskBalancing" "loadVariationRiskBalancing" "LowRiskOverCommitment" "lowRiskOverCommitment" "NodeResourceTopologyMatch" "nodeResourceTopologyMatch" "NodeResourcesAllocatable" "nodeResourcesAllocatable" "PreemptionToleration" "preemptionToleration" "TargetLoadPacking" "targetLoadPacking" }}
{{- $values := index $.Values $key }}
{{- if $values.enabled }}
{{- $on = append $on (dict "name" $name "args" $values.args "weight" $values.weight) }}
{{- end }}
{{- end }}
{{- toYaml $on }}
{{- end }}

{{/* The profile's plugins with those added. */}}
{{- define "gantry-scheduler.plugins" -}}
{{- $plugins := deepCopy .Values.plugins }}
{{- $multiPoint := get $plugins "multiPoint" | default dict }}
{{- $enabled := get $multiPoint "enabled" | default list }}
{{- range include "gantry-scheduler.extras" . | fromYamlArray }}
{{- $line := dict "name" .name }}
{{- if .weight }}
{{- $_ := set $line "weight" (int .weight) }}
{{- end }}
{{- $enabled = append $enabled $line }}
{{- end }}
{{- if $enabled }}
{{- $_ := set $multiPoint "enabled" $enabled }}
{{- end }}
{{- if $multiPoint }}
{{- $_ := set $plugins "multiPoint" $multiPoint }}
{{- end }}
{{- if .Values.coscheduling.enabled }}
{{- $all := list (dict "name" "*") }}
{{- $_ := set $plugins "queueSort" (dict "enabled" (list (dict "name" "Coscheduling")) "disabled" $all) }}
{{- end }}
{{- if and .Values.capacityScheduling.enabled .Values.preemptionToleration.enabled }}
{{- fail "capacityScheduling and preemptionToleration both preempt: enable one of them" }}
{{- end }}
{{- if or .Values.capacityScheduling.enabled .Values.preemptionToleration.enabled }}
{{- $postFilter := get $plugins "postFilter" | default dict }}
{{- $disabled := append (get $postFilter "disabled" | default list) (dict "name" "DefaultPreemption") }}
{{- $_ := set $postFilter "disabled" $disabled }}
{{- $_ := set $plugins "postFilter" $postFilter }}
{{- end }}
{{- if $plugins }}
{{- toYaml $plugins }}
{{- end }}
{{- end }}

{{/* The profile's arguments with theirs added. */}}
{{- define "gantry-scheduler.pluginConfig" -}}
{{- $config := .Values.pluginConfig | default list }}
{{- range include "gantry-scheduler.extras" . | fromYamlArray }}
{{- if .args }}
{{- $config = append $config (dict "name" .name "args" .args) }}
{{- end }}
{{- end }}
{{- if $config }}
{{- toYaml $config }}
{{- end }}
{{- end }}

{{- /* What the operator does with its pipelines and their children: nothing else, and no wildcard. */}}
{{- define "penstock.rules" -}}
# The pipelines. It writes their status and their finalizers, never their spec.
- apiGroups: [penstock.dev]
  resources: [ingestionpipelines]
  verbs: [get, list, watch, patch]
- apiGroups: [penstock.dev]
  resources: [ingestionpipelines/status]
  verbs: [patch]
- apiGroups: [penstock.dev]
  resources: [ingestionpipelines/finalizers]
  verbs: [update]
# The children of pipelines. Secrets and ConfigMaps are also read where a pipeline names them.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts, configmaps, secrets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# What is wrong with a component's pods is told in the status of the pipeline.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

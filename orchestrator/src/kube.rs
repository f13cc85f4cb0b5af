//! Toll in a Kubernetes cluster. The only folder that knows kube and k8s-openapi.

pub mod crd;
mod rules;
mod status;

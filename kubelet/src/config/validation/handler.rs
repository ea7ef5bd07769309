//! Probes and hooks.

use k8s_openapi::api::core::v1::{
    ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{Errors, Path};
use super::names::{header_name, port_number, port_number_or_name};

/// What is done, whoever asks for it.
#[derive(Default)]
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_port: Option<&'a IntOrString>,
    grpc_port: Option<i32>,
    sleep: Option<&'a SleepAction>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Liveness,
    Readiness,
    Startup,
}

/// `grace`: the pod's `terminationGracePeriodSeconds`.
pub fn probe(probe: &Probe, kind: Kind, grace: Option<i64>, path: &Path, errors: &mut Errors) {
    let of_probe = Handler {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_port: probe.tcp_socket.as_ref().map(|t| &t.port),
        grpc_port: probe.grpc.as_ref().map(|g| g.port),
        sleep: None,
    };
    handler(&of_probe, grace, path, errors);
    for (value, field) in [
        (probe.initial_delay_seconds, "initialDelaySeconds"),
        (probe.timeout_seconds, "timeoutSeconds"),
        (probe.period_seconds, "periodSeconds"),
        (probe.success_threshold, "successThreshold"),
        (probe.failure_threshold, "failureThreshold"),
    ] {
        errors.not_negative(&path.child(field), value.unwrap_or(0));
    }
    let own_grace = path.child("terminationGracePeriodSeconds");
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|s| *s <= 0) {
        errors.invalid(&own_grace, seconds, "must be greater than 0");
    }
    match kind {
        Kind::Readiness => {
            if let Some(seconds) = probe.termination_grace_period_seconds {
                errors.invalid(&own_grace, seconds, "must not be set for readinessProbes");
            }
        }
        Kind::Liveness | Kind::Startup => {
            // 0 is the default, 1.
            let threshold = probe.success_threshold.filter(|t| *t != 0).unwrap_or(1);
            if threshold != 1 {
                let path = path.child("successThreshold");
                errors.invalid(&path, threshold, "must be 1");
            }
        }
    }
}

pub fn lifecycle(
    lifecycle: &Lifecycle,
    grace: Option<i64>,
    has_os: bool,
    path: &Path,
    errors: &mut Errors,
) {
    for (hook, field) in [
        (&lifecycle.post_start, "postStart"),
        (&lifecycle.pre_stop, "preStop"),
    ] {
        if let Some(hook) = hook {
            handler(&of_hook(hook), grace, &path.child(field), errors);
        }
    }
    if lifecycle.stop_signal.is_some() && !has_os {
        let text = "may not be set for containers with empty `spec.os.name`";
        errors.forbidden(&path.child("stopSignal"), text);
    }
}

fn of_hook(hook: &LifecycleHandler) -> Handler<'_> {
    Handler {
        exec: hook.exec.as_ref(),
        http_get: hook.http_get.as_ref(),
        tcp_port: hook.tcp_socket.as_ref().map(|t| &t.port),
        grpc_port: None,
        sleep: hook.sleep.as_ref(),
    }
}

fn handler(handler: &Handler<'_>, grace: Option<i64>, path: &Path, errors: &mut Errors) {
    let mut kinds = 0;
    let mut is_one = |field: &str, errors: &mut Errors| {
        kinds += 1;
        if kinds > 1 {
            errors.forbidden(
                &path.child(field),
                "may not specify more than 1 handler type",
            );
        }
        kinds == 1
    };
    if let Some(exec) = handler.exec
        && is_one("exec", errors)
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        errors.required(&path.child("exec").child("command"), "");
    }
    if let Some(get) = handler.http_get
        && is_one("httpGet", errors)
    {
        http_get(get, &path.child("httpGet"), errors);
    }
    if let Some(port) = handler.tcp_port
        && is_one("tcpSocket", errors)
    {
        port_number_or_name(port, &path.child("tcpSocket").child("port"), errors);
    }
    if let Some(port) = handler.grpc_port
        && is_one("grpc", errors)
    {
        port_number(port, &path.child("grpc").child("port"), errors);
    }
    if let Some(sleep) = handler.sleep
        && is_one("sleep", errors)
        && let Some(grace) = grace
        && !(0..=grace).contains(&sleep.seconds)
    {
        let text =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(&path.child("sleep"), sleep.seconds, &text);
    }
    if kinds == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn http_get(get: &HTTPGetAction, path: &Path, errors: &mut Errors) {
    port_number_or_name(&get.port, &path.child("port"), errors);
    let scheme = get.scheme.as_deref().filter(|s| !s.is_empty());
    if let Some(scheme) = scheme
        && !["HTTP", "HTTPS"].contains(&scheme)
    {
        errors.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in get.http_headers.iter().flatten() {
        header_name(&header.name, &path.child("httpHeaders"), errors);
    }
}

//! `extenders` of the configuration.

use component_base::duration::GoDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A program outside of the scheduler that is asked by HTTP.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Extender {
    /// Where it listens; a verb is added with a slash.
    pub url_prefix: String,
    /// Which nodes fit; empty: not asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter_verb: String,
    /// Which pods may be ended; empty: not asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub preempt_verb: String,
    /// Which nodes are better; empty: not asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prioritize_verb: String,
    /// What a score of its counts.
    pub weight: i64,
    /// It binds pods; empty: it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bind_verb: String,
    /// Without a CA, its certificate is not looked at.
    #[serde(rename = "enableHTTPS")]
    pub enable_https: bool,
    /// How it is spoken to over TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_config: Option<ExtenderTlsConfig>,
    /// How long an answer may take; 0: 5 s.
    #[serde(rename = "httpTimeout")]
    #[schemars(with = "String")]
    pub http_timeout: GoDuration,
    /// It knows the nodes: their names are enough for it.
    pub node_cache_capable: bool,
    /// Pods that ask for none of these are not its business; empty: all are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub managed_resources: Vec<ExtenderManagedResource>,
    /// Its failure is no failure of scheduling.
    pub ignorable: bool,
}

/// An extended resource that an extender manages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtenderManagedResource {
    /// Its name.
    pub name: String,
    /// NodeResourcesFit does not look at it.
    pub ignored_by_scheduler: bool,
}

/// TLS with an extender. Data stand before files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtenderTlsConfig {
    /// The server's certificate is not looked at.
    pub insecure: bool,
    /// The name the server's certificate is for; empty: that of the URL.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_name: String,
    /// Ours, for a server that wants one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cert_file: String,
    /// Its key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_file: String,
    /// Who signed the server's.
    #[serde(rename = "caFile", skip_serializing_if = "String::is_empty")]
    pub ca_file: String,
    /// PEM in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cert_data: String,
    /// PEM in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_data: String,
    /// PEM in base64.
    #[serde(rename = "caData", skip_serializing_if = "String::is_empty")]
    pub ca_data: String,
}

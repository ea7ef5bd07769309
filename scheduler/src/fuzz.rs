//! What must hold whatever a configuration file or a command line says: for the fuzz target in `fuzz/`, and for the cases
//! it found.

use std::path::Path;

use component_base::config::decode_strict;

use crate::config::{
    API_VERSION, KIND, KubeSchedulerConfiguration, default_profiles, not_acted_on, validate,
};
use crate::options::{Options, flag_set};

/// The scheduler's configuration, without the two lines that say what it is, or its flags, one a line: what is read and
/// written again is read the same.
///
/// # Panics
/// When the promise is broken.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if text.starts_with("--") {
        if let Ok(flags) = flag_set().parse(text.lines().map(str::to_owned))
            && flags.optional("config").is_none()
        {
            let _ = Options::from_flags(&flags).map_err(|error| error.to_string());
        }
        return;
    }
    let head = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
    let read = |text: &str| {
        decode_strict::<KubeSchedulerConfiguration>(Path::new("f"), text, API_VERSION, KIND)
    };
    match read(&(head + text)) {
        Ok(mut config) => {
            let mut value = serde_json::to_value(&config).expect("it can be written");
            value["apiVersion"] = API_VERSION.into();
            value["kind"] = KIND.into();
            let again = read(&value.to_string()).expect("what is written is read");
            assert_eq!(again, config);
            default_profiles(&mut config);
            let _ = (validate(&config), not_acted_on(&config));
        }
        Err(error) => drop(error.to_string()),
    }
}

/// Files and command lines to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "",
        "parallelism: 8\nleaderElection: {leaderElect: true, leaseDuration: 15s}\n",
        "profiles:\n- schedulerName: a\n  plugins: {score: {disabled: [{name: '*'}], enabled: [{name: ImageLocality, weight: 2}]}}\n  pluginConfig:\n  - name: NodeAffinity\n    args: {addedAffinity: {}}\n",
        "--v=2\n--leader-elect=false\n--kube-api-qps=7.5",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::seeds() {
            super::configuration(&case);
        }
    }
}

//! What must hold whatever a container, a user or a configuration file says: for the fuzz targets in `fuzz/`, and for the
//! cases they found. Each function panics when its promise is broken.

use std::path::Path;

use component_base::config::decode_strict;

use crate::configuration::validation::validate_kubelet_configuration;
use crate::configuration::{API_VERSION, KIND, KubeletConfiguration};
use crate::environment::env_file;
use crate::options::{Options, flag_set};

/// The log of a container, followed and read from its last lines.
pub fn container_log(data: &[u8]) {
    crate::server::fuzz_container_logs(data);
}

/// A file of variables: every value that can stand in quotes is read as it was written, wherever its line stands among
/// others that are right; an error names a line that is there.
pub fn env_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let lines = text.lines().count();
    for key in ["K", "", "a b", text.get(..3).unwrap_or("A")] {
        if let Err(error) = env_file::value(text, key) {
            let message = error.to_string();
            let number = message
                .split("line ")
                .nth(1)
                .and_then(|rest| rest.split(':').next())
                .and_then(|number| number.parse::<usize>().ok())
                .expect("an error names its line");
            assert!((1..=lines).contains(&number), "{message}");
        }
    }
    if text.contains(['\'', '\r']) {
        return;
    }
    let written = format!(
        "# {}\nA='{text}' # more\n\n\tK='{text}'\nB='{text}'\n",
        text.replace('\n', " ")
    );
    for key in ["A", "K", "B"] {
        assert_eq!(env_file::value(&written, key).as_deref(), Ok(text));
    }
}

/// The kubelet's configuration, without the two lines that say what it is, and its flags.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(flags) = text.strip_prefix("--") {
        let args = format!("--{flags}");
        if let Ok(flags) = flag_set().parse(args.lines().map(str::to_owned)) {
            let _ = Options::from_flags(&flags).map_err(|error| error.to_string());
        }
        return;
    }
    let head = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
    let read =
        |text: &str| decode_strict::<KubeletConfiguration>(Path::new("f"), text, API_VERSION, KIND);
    match read(&(head + text)) {
        Ok(config) => {
            let _ = validate_kubelet_configuration(&config);
            let mut value = serde_json::to_value(&config).expect("it can be written");
            value["apiVersion"] = API_VERSION.into();
            value["kind"] = KIND.into();
            let again = read(&value.to_string()).expect("what is written is read");
            assert_eq!(
                serde_json::to_value(&again).expect("it can be written"),
                serde_json::to_value(&config).expect("it can be written")
            );
        }
        Err(error) => drop(error.to_string()),
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Logs to begin with.
pub fn log_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "\x00\x022016-10-06T00:17:09.669794202Z stdout P one, \n2016-10-06T00:17:09Z stdout F two\n",
        "\x03\x402016-10-06T00:17:09Z stderr F:x one\nnonsense\n2016-10-06T00:17:09Z stdout F two",
        "\x17\x03\n\n\nx",
    ])
}

/// Files to begin with.
pub fn env_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "K='v'\n",
        "K= 'v'",
        "one\ntwo",
        "x ='",
        "# x\n\tA='1' # y\nK='a\nb'",
    ])
}

/// Files and command lines to begin with.
pub fn configuration_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "",
        "maxPods: 7\nevictionHard: {memory.available: 5%}\nevictionSoftGracePeriod: {a: 1m}\n",
        "syncFrequency: 1m\nfeatureGates: {A: true}\nauthentication: {x509: {clientCAFile: /x}}\n",
        "reservedSystemCPUs: 0-1\nkubeReserved: {cpu: 100m}\nshutdownGracePeriod: 10s\n",
        "--v=2\n--node-ip=10.0.0.1\n--eviction-hard=memory.available<1Gi",
    ])
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::log_seeds() {
            super::container_log(&case);
        }
        for case in super::env_seeds() {
            super::env_file(&case);
        }
        for case in super::configuration_seeds() {
            super::configuration(&case);
        }
    }
}

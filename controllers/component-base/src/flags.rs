//! The command line as upstream's components read it (pflag): `--name value`, `--name=value`, bare booleans, `-v 4`.
//!
//! A binary declares every flag upstream has. A flag that is known and not used here warns once when it is given; a flag nobody
//! knows, or a value that does not parse, is one error that names both. Upstream: `k8s.io/component-base/cli/flag`, `spf13/pflag`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::duration;

/// What a flag holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `--x`, `--x=false`.
    Bool(bool),
    /// Any text.
    String(String),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Go's duration text.
    Duration(Duration),
    /// `--x a,b --x c`; the first use replaces the default.
    List(Vec<String>),
    /// `--x a=1,b=2 --x c=3`; the first use replaces the default.
    Map(BTreeMap<String, String>),
}

/// As on a command line: `true`, `5m0s`, `a,b`, `a=1,b=2`.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::String(value) => f.write_str(value),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Duration(value) => f.write_str(&duration::format(*value)),
            Self::List(values) => f.write_str(&values.join(",")),
            Self::Map(values) => {
                let pairs: Vec<String> = values.iter().map(|(k, v)| format!("{k}={v}")).collect();
                f.write_str(&pairs.join(","))
            }
        }
    }
}

impl Value {
    /// As configuration files carry it: durations are text.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::Float(value) => (*value).into(),
            Self::List(values) => values.clone().into(),
            Self::Map(values) => serde_json::json!(values),
            Self::String(_) | Self::Duration(_) => self.to_string().into(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "",
            Self::String(_) => "string",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Duration(_) => "duration",
            Self::List(_) => "strings",
            Self::Map(_) => "mapStringString",
        }
    }
}

/// Why a command line was refused. The text is what upstream prints.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlagError {
    /// Nobody knows the flag.
    #[error("unknown flag: --{0}")]
    Unknown(String),
    /// Nobody knows the one-letter flag.
    #[error("unknown shorthand flag: {0:?} in -{1}")]
    UnknownShorthand(char, String),
    /// The value is missing.
    #[error("flag needs an argument: --{0}")]
    NeedsArgument(String),
    /// The value does not parse.
    #[error("invalid argument {value:?} for \"--{flag}\" flag: {reason}")]
    Invalid {
        /// The flag, without dashes.
        flag: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A word that belongs to no flag.
    #[error("{binary:?} does not take any arguments, got [{argument:?}]")]
    Argument {
        /// The program.
        binary: String,
        /// The word.
        argument: String,
    },
    /// `--help` was asked for; print [`FlagSet::usage`] and exit 0.
    #[error("help requested")]
    Help,
    /// `--version` was asked for; print [`crate::version::long`] and exit 0.
    #[error("version requested")]
    Version,
}

struct Flag {
    default: Value,
    help: &'static str,
    used: bool,
}

/// The flags a binary knows.
pub struct FlagSet {
    binary: &'static str,
    about: &'static str,
    flags: BTreeMap<&'static str, Flag>,
    shorthands: HashMap<char, &'static str>,
}

impl FlagSet {
    /// A set that knows `--help`/`-h`, `--version`, `-v` and the logging flags.
    pub fn new(binary: &'static str, about: &'static str) -> Self {
        let mut set = Self {
            binary,
            about,
            flags: BTreeMap::new(),
            shorthands: HashMap::new(),
        };
        set.int("v", 0, "number for the log level verbosity");
        set.string(
            "logging-format",
            "text",
            "Sets the log format. Permitted formats: \"json\", \"text\".",
        );
        set.map(
            "feature-gates",
            "A set of key=value pairs that describe feature gates for alpha/experimental features.",
        );
        set.unused(&[
            ("vmodule", Value::String(String::new())),
            (
                "log-flush-frequency",
                Value::Duration(Duration::from_secs(5)),
            ),
            ("log-text-split-stream", Value::Bool(false)),
            ("log-json-split-stream", Value::Bool(false)),
            ("log-text-info-buffer-size", Value::String("0".into())),
            ("log-json-info-buffer-size", Value::String("0".into())),
            ("version-emulation", Value::String(String::new())),
        ]);
        set.shorthands.insert('v', "v");
        set
    }

    fn add(&mut self, name: &'static str, default: Value, help: &'static str) {
        self.flags.insert(
            name,
            Flag {
                default,
                help,
                used: true,
            },
        );
    }
    /// A boolean.
    pub fn bool(&mut self, name: &'static str, default: bool, help: &'static str) {
        self.add(name, Value::Bool(default), help);
    }
    /// A text.
    pub fn string(&mut self, name: &'static str, default: &str, help: &'static str) {
        self.add(name, Value::String(default.into()), help);
    }
    /// A whole number.
    pub fn int(&mut self, name: &'static str, default: i64, help: &'static str) {
        self.add(name, Value::Int(default), help);
    }
    /// A number.
    pub fn float(&mut self, name: &'static str, default: f64, help: &'static str) {
        self.add(name, Value::Float(default), help);
    }
    /// A duration.
    pub fn duration(&mut self, name: &'static str, default: Duration, help: &'static str) {
        self.add(name, Value::Duration(default), help);
    }
    /// A comma-separated list, repeatable.
    pub fn list(&mut self, name: &'static str, default: &[&str], help: &'static str) {
        self.add(
            name,
            Value::List(default.iter().map(ToString::to_string).collect()),
            help,
        );
    }
    /// `key=value` pairs, comma-separated, repeatable.
    pub fn map(&mut self, name: &'static str, help: &'static str) {
        self.add(name, Value::Map(BTreeMap::new()), help);
    }
    /// Another name for a flag: one letter.
    pub fn shorthand(&mut self, letter: char, name: &'static str) {
        self.shorthands.insert(letter, name);
    }
    /// Flags upstream knows and this build does not act on; the value only carries the kind and default.
    pub fn unused(&mut self, flags: &[(&'static str, Value)]) {
        for (name, default) in flags {
            self.flags.insert(
                name,
                Flag {
                    default: default.clone(),
                    help: "(accepted, not used)",
                    used: false,
                },
            );
        }
    }

    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    /// The first thing that is wrong; `Help` and `Version` when these were asked for.
    pub fn parse(&self, args: impl IntoIterator<Item = String>) -> Result<Flags, FlagError> {
        let mut values: HashMap<&'static str, Value> = HashMap::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let (name, inline) = self.name_of(&arg)?;
            if name == "help" {
                return Err(FlagError::Help);
            }
            if name == "version" {
                match inline.as_deref() {
                    None | Some("true" | "raw") => return Err(FlagError::Version),
                    Some("false") => continue,
                    Some(v) => {
                        return Err(invalid(
                            "version",
                            v,
                            format!("strconv.ParseBool: parsing {v:?}: invalid syntax"),
                        ));
                    }
                }
            }
            let Some((key, flag)) = self.flags.get_key_value(name.as_str()) else {
                return Err(FlagError::Unknown(name));
            };
            let text = match (inline, &flag.default) {
                (Some(text), _) => text,
                (None, Value::Bool(_)) => "true".to_string(),
                (None, _) => args.next().ok_or(FlagError::NeedsArgument(name))?,
            };
            let before = values.remove(key);
            values.insert(key, set_value(key, &flag.default, before, &text)?);
        }
        let flags = Flags {
            defaults: self
                .flags
                .iter()
                .map(|(name, flag)| (*name, flag.default.clone()))
                .collect(),
            unused: values
                .keys()
                .filter(|name| !self.flags[**name].used)
                .map(ToString::to_string)
                .collect(),
            values,
        };
        Ok(flags)
    }

    /// `(name, inline value)` of one word.
    fn name_of(&self, arg: &str) -> Result<(String, Option<String>), FlagError> {
        let argument = || FlagError::Argument {
            binary: self.binary.to_string(),
            argument: arg.to_string(),
        };
        if let Some(long) = arg.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (long, None),
            };
            if name.is_empty() {
                return Err(argument());
            }
            return Ok((name.replace('_', "-"), value));
        }
        let Some(short) = arg.strip_prefix('-').filter(|s| !s.is_empty()) else {
            return Err(argument());
        };
        let letter = short.chars().next().expect("not empty, just checked");
        let rest = &short[letter.len_utf8()..];
        let value = (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest).to_string());
        match self.shorthands.get(&letter) {
            Some(name) => Ok((name.to_string(), value)),
            None if letter == 'h' => Ok(("help".to_string(), None)),
            None => Err(FlagError::UnknownShorthand(letter, short.to_string())),
        }
    }

    /// The text of `--help`.
    pub fn usage(&self) -> String {
        let mut text = format!(
            "{}\n\nUsage:\n  {} [flags]\n\nFlags:\n",
            self.about, self.binary
        );
        for (name, flag) in &self.flags {
            let dashes = if name.len() == 1 { "-" } else { "--" };
            text += &format!(
                "      {dashes}{name} {}\n            {}\n",
                flag.default.kind(),
                flag.help
            );
        }
        text + "  -h, --help\n            help\n      --version\n            Print version information and quit\n"
    }

    /// Reads the process's command line, or exits as upstream does: `--version` and `--help` print and exit 0, an error prints
    /// one line and exits 1.
    pub fn parse_or_exit(&self) -> Flags {
        match self.parse(std::env::args().skip(1)) {
            Ok(flags) => flags,
            Err(FlagError::Help) => {
                print!("{}", self.usage());
                std::process::exit(0)
            }
            Err(FlagError::Version) => {
                println!("{}", crate::version::long());
                std::process::exit(0)
            }
            Err(error) => {
                eprintln!("Error: {error}");
                std::process::exit(1)
            }
        }
    }
}

fn invalid(flag: &str, value: &str, reason: impl ToString) -> FlagError {
    FlagError::Invalid {
        flag: flag.to_string(),
        value: value.to_string(),
        reason: reason.to_string(),
    }
}

/// Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn set_value(
    flag: &str,
    default: &Value,
    before: Option<Value>,
    text: &str,
) -> Result<Value, FlagError> {
    Ok(match default {
        Value::Bool(_) => Value::Bool(parse_bool(text).ok_or_else(|| {
            invalid(
                flag,
                text,
                format!("strconv.ParseBool: parsing {text:?}: invalid syntax"),
            )
        })?),
        Value::String(_) => Value::String(text.to_string()),
        Value::Int(_) => Value::Int(text.parse().map_err(|_| {
            invalid(
                flag,
                text,
                format!("strconv.ParseInt: parsing {text:?}: invalid syntax"),
            )
        })?),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| {
            invalid(
                flag,
                text,
                format!("strconv.ParseFloat: parsing {text:?}: invalid syntax"),
            )
        })?),
        Value::Duration(_) => {
            Value::Duration(duration::parse(text).map_err(|e| invalid(flag, text, e))?)
        }
        Value::List(_) => {
            let mut list = match before {
                Some(Value::List(list)) => list,
                _ => Vec::new(),
            };
            list.extend(
                text.split(',')
                    .filter(|item| !item.is_empty())
                    .map(ToString::to_string),
            );
            Value::List(list)
        }
        Value::Map(_) => {
            let mut map = match before {
                Some(Value::Map(map)) => map,
                _ => BTreeMap::new(),
            };
            for pair in text
                .split(',')
                .map(str::trim)
                .filter(|pair| !pair.is_empty())
            {
                let (key, value) = pair
                    .split_once('=')
                    .ok_or_else(|| invalid(flag, text, "malformed pair, expect string=string"))?;
                map.insert(key.trim().to_string(), value.trim().to_string());
            }
            Value::Map(map)
        }
    })
}

/// A command line that was read. Asking for a flag that was never declared is a bug of the caller and panics.
#[derive(Clone, Debug)]
pub struct Flags {
    values: HashMap<&'static str, Value>,
    defaults: BTreeMap<&'static str, Value>,
    unused: Vec<String>,
}

impl Flags {
    /// Whether the flag was given.
    pub fn changed(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
    /// The value, given or default.
    pub fn value(&self, name: &str) -> &Value {
        self.values
            .get(name)
            .or_else(|| self.defaults.get(name))
            .unwrap_or_else(|| panic!("flag --{name} was never declared"))
    }
    /// A boolean flag.
    pub fn bool(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Bool(value) => *value,
            other => panic!("flag --{name} is {other:?}, not a bool"),
        }
    }
    /// A text flag.
    pub fn string(&self, name: &str) -> &str {
        match self.value(name) {
            Value::String(value) => value,
            other => panic!("flag --{name} is {other:?}, not a string"),
        }
    }
    /// A text flag, `None` when empty.
    pub fn optional(&self, name: &str) -> Option<&str> {
        Some(self.string(name)).filter(|text| !text.is_empty())
    }
    /// A whole number.
    pub fn int(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Int(value) => *value,
            other => panic!("flag --{name} is {other:?}, not an int"),
        }
    }
    /// A number.
    pub fn float(&self, name: &str) -> f64 {
        match self.value(name) {
            Value::Float(value) => *value,
            other => panic!("flag --{name} is {other:?}, not a float"),
        }
    }
    /// A duration.
    pub fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Duration(value) => *value,
            other => panic!("flag --{name} is {other:?}, not a duration"),
        }
    }
    /// A list.
    pub fn list(&self, name: &str) -> &[String] {
        match self.value(name) {
            Value::List(value) => value,
            other => panic!("flag --{name} is {other:?}, not a list"),
        }
    }
    /// A map.
    pub fn map(&self, name: &str) -> &BTreeMap<String, String> {
        match self.value(name) {
            Value::Map(value) => value,
            other => panic!("flag --{name} is {other:?}, not a map"),
        }
    }
    /// Starts logging by `-v` and `--logging-format`, then warns once of every flag that was given and is not used.
    ///
    /// # Errors
    /// An unknown logging format.
    pub fn init_logs(&self) -> Result<(), FlagError> {
        self.init_logs_with("", 0)
    }

    /// As [`Flags::init_logs`]; what the command line leaves out is as `logging` of a configuration file says.
    ///
    /// # Errors
    /// A format nobody knows.
    pub fn init_logs_with(&self, format: &str, verbosity: u32) -> Result<(), FlagError> {
        let format = match self.changed("logging-format") {
            false if !format.is_empty() => format,
            _ => self.string("logging-format"),
        };
        let verbosity = match self.changed("v") {
            true => u32::try_from(self.int("v")).unwrap_or(0),
            false => verbosity,
        };
        let parsed = format
            .parse()
            .map_err(|e| invalid("logging-format", format, e))?;
        crate::logs::init(verbosity, parsed);
        for name in &self.unused {
            tracing::warn!(
                flag = format!("--{name}"),
                "The flag is accepted and not used by this build"
            );
        }
        Ok(())
    }
    /// Every flag with its value, for `/flagz`.
    pub fn all(&self) -> BTreeMap<&'static str, &Value> {
        self.defaults
            .iter()
            .map(|(name, default)| (*name, self.values.get(name).unwrap_or(default)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> FlagSet {
        let mut set = FlagSet::new("kube-test", "tests");
        set.bool("leader-elect", true, "");
        set.int("port", 10, "");
        set.duration("period", Duration::from_secs(5), "");
        set.list("controllers", &["*"], "");
        set.map("labels", "");
        set.unused(&[("old", Value::String(String::new()))]);
        set
    }
    fn parse(args: &[&str]) -> Result<Flags, String> {
        set()
            .parse(args.iter().map(ToString::to_string))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn reads_what_pflag_reads() {
        let flags = parse(&[
            "--leader-elect=false",
            "--port",
            "7",
            "--period=1m",
            "--controllers=a,b",
            "--controllers",
            "-c",
            "--labels=x=1,y=2",
            "-v",
            "4",
            "--old=1",
        ])
        .unwrap();
        assert!(!flags.bool("leader-elect"));
        assert_eq!(flags.int("port"), 7);
        assert_eq!(flags.duration("period"), Duration::from_secs(60));
        assert_eq!(flags.list("controllers"), ["a", "b", "-c"]);
        assert_eq!(flags.map("labels").len(), 2);
        assert_eq!(flags.int("v"), 4);
        assert_eq!(flags.unused, ["old"]);
        assert!(parse(&["--leader_elect"]).unwrap().bool("leader-elect"));
        assert_eq!(parse(&["-v=3"]).unwrap().int("v"), 3);
    }

    #[test]
    fn errors_name_flag_and_value() {
        for (args, expect) in [
            (&["--nope"][..], "unknown flag: --nope"),
            (&["--port"], "flag needs an argument: --port"),
            (
                &["--port=x"],
                "invalid argument \"x\" for \"--port\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                &["--period=5"],
                "invalid argument \"5\" for \"--period\" flag: time: missing unit in duration \"5\"",
            ),
            (
                &["word"],
                "\"kube-test\" does not take any arguments, got [\"word\"]",
            ),
            (&["--version"], "version requested"),
            (&["-h"], "help requested"),
        ] {
            assert_eq!(parse(args).unwrap_err(), expect);
        }
    }
}

//! What functions and operators there are, and what they take and give.
//!
//! Upstream: cel-go's standard library with numbers compared across types, its extensions for strings, lists, sets and optionals, and
//! k8s.io/apiserver/pkg/cel/library; the environment of v1.37. A function that is not here is not checked, and gives dyn.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::Type;

/// One way to call a function.
#[derive(Clone, Debug)]
pub struct Overload {
    /// Whether the first argument is the target.
    pub member: bool,
    /// The arguments' types; parameters count from 0.
    pub args: Vec<Type>,
    /// What comes out.
    pub result: Type,
    /// How many type parameters it has.
    pub params: usize,
}

/// `NAME = (ARGS) -> RESULT`, or `NAME = TARGET.(ARGS) -> RESULT`. Types A and B stand for any.
const FUNCTIONS: &str = "
_?_:_ = (bool, A, A) -> A
!_ = (bool) -> bool
_==_ = (A, A) -> bool
_!=_ = (A, A) -> bool
_+_ = (bytes, bytes) -> bytes
_+_ = (double, double) -> double
_+_ = (duration, duration) -> duration
_+_ = (duration, timestamp) -> timestamp
_+_ = (timestamp, duration) -> timestamp
_+_ = (int, int) -> int
_+_ = (list<A>, list<A>) -> list<A>
_+_ = (string, string) -> string
_+_ = (uint, uint) -> uint
_/_ = (double, double) -> double
_/_ = (int, int) -> int
_/_ = (uint, uint) -> uint
_%_ = (int, int) -> int
_%_ = (uint, uint) -> uint
_*_ = (double, double) -> double
_*_ = (int, int) -> int
_*_ = (uint, uint) -> uint
-_ = (double) -> double
-_ = (int) -> int
_-_ = (double, double) -> double
_-_ = (duration, duration) -> duration
_-_ = (int, int) -> int
_-_ = (timestamp, duration) -> timestamp
_-_ = (timestamp, timestamp) -> duration
_-_ = (uint, uint) -> uint
_[_] = (list<A>, int) -> A
_[_] = (map<A, B>, A) -> B
_[_] = (optional<list<A>>, int) -> optional<A>
_[_] = (optional<map<A, B>>, A) -> optional<B>
_[?_] = (list<A>, int) -> optional<A>
_[?_] = (optional<list<A>>, int) -> optional<A>
_[?_] = (map<A, B>, A) -> optional<B>
_[?_] = (optional<map<A, B>>, A) -> optional<B>
@in = (A, list<A>) -> bool
@in = (A, map<A, B>) -> bool
size = (bytes) -> int
size = bytes.() -> int
size = (list<A>) -> int
size = list<A>.() -> int
size = (map<A, B>) -> int
size = map<A, B>.() -> int
size = (string) -> int
size = string.() -> int
type = (A) -> type
bool = (bool) -> bool
bool = (string) -> bool
bytes = (bytes) -> bytes
bytes = (string) -> bytes
double = (double) -> double
double = (int) -> double
double = (string) -> double
double = (uint) -> double
duration = (duration) -> duration
duration = (string) -> duration
dyn = (A) -> dyn
int = (int) -> int
int = (double) -> int
int = (duration) -> int
int = (string) -> int
int = (timestamp) -> int
int = (uint) -> int
string = (string) -> string
string = (bool) -> string
string = (bytes) -> string
string = (double) -> string
string = (duration) -> string
string = (int) -> string
string = (timestamp) -> string
string = (uint) -> string
string = (net.IP) -> string
string = (net.CIDR) -> string
timestamp = (timestamp) -> timestamp
timestamp = (int) -> timestamp
timestamp = (string) -> timestamp
uint = (uint) -> uint
uint = (double) -> uint
uint = (int) -> uint
uint = (string) -> uint
contains = string.(string) -> bool
endsWith = string.(string) -> bool
startsWith = string.(string) -> bool
matches = (string, string) -> bool
matches = string.(string) -> bool
getFullYear = timestamp.() -> int
getFullYear = timestamp.(string) -> int
getMonth = timestamp.() -> int
getMonth = timestamp.(string) -> int
getDayOfYear = timestamp.() -> int
getDayOfYear = timestamp.(string) -> int
getDayOfMonth = timestamp.() -> int
getDayOfMonth = timestamp.(string) -> int
getDate = timestamp.() -> int
getDate = timestamp.(string) -> int
getDayOfWeek = timestamp.() -> int
getDayOfWeek = timestamp.(string) -> int
getHours = timestamp.() -> int
getHours = timestamp.(string) -> int
getHours = duration.() -> int
getMinutes = timestamp.() -> int
getMinutes = timestamp.(string) -> int
getMinutes = duration.() -> int
getSeconds = timestamp.() -> int
getSeconds = timestamp.(string) -> int
getSeconds = duration.() -> int
getMilliseconds = timestamp.() -> int
getMilliseconds = timestamp.(string) -> int
getMilliseconds = duration.() -> int
charAt = string.(int) -> string
indexOf = string.(string) -> int
indexOf = string.(string, int) -> int
indexOf = list<A>.(A) -> int
lastIndexOf = string.(string) -> int
lastIndexOf = string.(string, int) -> int
lastIndexOf = list<A>.(A) -> int
lowerAscii = string.() -> string
upperAscii = string.() -> string
replace = string.(string, string) -> string
replace = string.(string, string, int) -> string
split = string.(string) -> list<string>
split = string.(string, int) -> list<string>
substring = string.(int) -> string
substring = string.(int, int) -> string
trim = string.() -> string
format = string.(list<dyn>) -> string
strings.quote = (string) -> string
join = list<string>.() -> string
join = list<string>.(string) -> string
find = string.(string) -> string
findAll = string.(string) -> list<string>
findAll = string.(string, int) -> list<string>
sets.contains = (list<A>, list<A>) -> bool
sets.equivalent = (list<A>, list<A>) -> bool
sets.intersects = (list<A>, list<A>) -> bool
optional.of = (A) -> optional<A>
optional.ofNonZeroValue = (A) -> optional<A>
optional.none = () -> optional<A>
value = optional<A>.() -> A
hasValue = optional<A>.() -> bool
or = optional<A>.(optional<A>) -> optional<A>
orValue = optional<A>.(A) -> A
url = (string) -> kubernetes.URL
getScheme = kubernetes.URL.() -> string
getHost = kubernetes.URL.() -> string
getHostname = kubernetes.URL.() -> string
getPort = kubernetes.URL.() -> string
getEscapedPath = kubernetes.URL.() -> string
getQuery = kubernetes.URL.() -> map<string, list<string>>
isURL = (string) -> bool
path = kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.PathCheck
group = kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.GroupCheck
serviceAccount = kubernetes.authorization.Authorizer.(string, string) -> kubernetes.authorization.Authorizer
resource = kubernetes.authorization.GroupCheck.(string) -> kubernetes.authorization.ResourceCheck
subresource = kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck
namespace = kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck
name = kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck
fieldSelector = kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck
labelSelector = kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck
check = kubernetes.authorization.PathCheck.(string) -> kubernetes.authorization.Decision
check = kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.Decision
errored = kubernetes.authorization.Decision.() -> bool
error = kubernetes.authorization.Decision.() -> string
allowed = kubernetes.authorization.Decision.() -> bool
reason = kubernetes.authorization.Decision.() -> string
";

/// What `_<_` and its like compare: each with itself, and numbers with each other.
const NUMBERS: &[&str] = &["int", "uint", "double"];
const ORDERED: &[&str] = &["bool", "string", "bytes", "timestamp", "duration"];

static TABLE: LazyLock<HashMap<String, Vec<Overload>>> = LazyLock::new(|| {
    let mut table: HashMap<String, Vec<Overload>> = HashMap::new();
    let mut add = |line: &str| {
        let (name, overload) = read(line).expect("the tests read every line");
        table.entry(name).or_default().push(overload);
    };
    FUNCTIONS
        .lines()
        .filter(|line| !line.is_empty())
        .for_each(&mut add);
    for operator in ["_<_", "_<=_", "_>_", "_>=_"] {
        for a in NUMBERS {
            for b in NUMBERS {
                add(&format!("{operator} = ({a}, {b}) -> bool"));
            }
        }
        for same in ORDERED {
            add(&format!("{operator} = ({same}, {same}) -> bool"));
        }
    }
    table
});

/// The ways to call a function; `None` if it is not known here.
pub fn overloads(name: &str) -> Option<&'static [Overload]> {
    TABLE.get(name).map(Vec::as_slice)
}

fn read(line: &str) -> Option<(String, Overload)> {
    let (name, signature) = line.split_once(" = ")?;
    let (call, result) = signature.rsplit_once(" -> ")?;
    let (target, args) = call.split_once('(')?;
    let args = args.strip_suffix(')')?;
    let target = target.strip_suffix('.');
    let mut types: Vec<Type> = target.map(read_type).into_iter().collect();
    types.extend(split(args).into_iter().map(read_type));
    let params = ['A', 'B']
        .iter()
        .filter(|p| has_word(signature, **p))
        .count();
    let overload = Overload {
        member: target.is_some(),
        args: types,
        result: read_type(result),
        params,
    };
    Some((name.to_owned(), overload))
}

fn has_word(text: &str, word: char) -> bool {
    text.split(|c: char| !c.is_alphanumeric())
        .any(|w| w.len() == 1 && w.starts_with(word))
}

/// Parts at commas that are not within angle brackets.
fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    let last = list[begin..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

fn read_type(text: &str) -> Type {
    let (name, of) = match text.strip_suffix('>').and_then(|text| text.split_once('<')) {
        Some((name, of)) => (name, split(of).into_iter().map(read_type).collect()),
        None => (text, Vec::new()),
    };
    match (name, of.as_slice()) {
        ("list", [of]) => Type::list(of.clone()),
        ("map", [key, value]) => Type::map(key.clone(), value.clone()),
        ("optional", [of]) => Type::optional(of.clone()),
        ("A", _) => Type::Param(0),
        ("B", _) => Type::Param(1),
        ("dyn", _) => Type::Dyn,
        ("bool", _) => Type::Bool,
        ("int", _) => Type::Int,
        ("uint", _) => Type::Uint,
        ("double", _) => Type::Double,
        ("string", _) => Type::String,
        ("bytes", _) => Type::Bytes,
        ("duration", _) => Type::Duration,
        ("timestamp", _) => Type::Timestamp,
        ("type", _) => Type::Type,
        (library, _) => Type::opaque(library),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        for line in FUNCTIONS.lines().filter(|line| !line.is_empty()) {
            assert!(read(line).is_some(), "{line}");
        }
        assert_eq!(overloads("_>_").unwrap().len(), 14);
        let index = &overloads("_[_]").unwrap()[1];
        assert_eq!(index.params, 2);
        assert_eq!(index.args[0].to_string(), "map(_var0, _var1)");
        let query = &overloads("getQuery").unwrap()[0];
        assert!(query.member && query.params == 0);
        assert_eq!(query.args[0].to_string(), "kubernetes.URL");
        assert_eq!(query.result.to_string(), "map(string, list(string))");
        assert!(overloads("nobody").is_none());
    }
}

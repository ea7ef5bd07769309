//! What Kubernetes adds to CEL, as far as it is about devices.

use std::cmp::Ordering;

use cel::common::ast::{ComprehensionExpr, Expr, ListExpr, LiteralValue};
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelString, DYN_TYPE, INT_TYPE, LIST_TYPE,
};
use cel::common::value::{CowVal, Val};
use cel::parser::Macro;
use cel::{DeclarationError, Env, ExecutionError, add_member_overload, add_overload, extensions};
use component_helpers::quantity::{Amount, Format};
use regex::Regex;

use super::values::{Quantity, Semver, text};

type Extension = fn(&mut Env) -> Result<(), DeclarationError>;

/// The standard library, the extensions for strings and lists, optional values, and what is below.
pub(super) fn environment() -> Env {
    let mut env = Env::stdlib();
    let all: [Extension; 7] = [
        extensions::strings,
        extensions::lists,
        quantities,
        versions,
        sets,
        lists,
        regular_expressions,
    ];
    for extension in all {
        extension(&mut env).expect("no two of them declare the same");
    }
    env.add_macro(bind()).expect("the only one of its name");
    env
}

/// `cel.bind(name, value, expression)`.
fn bind() -> Macro {
    Macro::receiver("bind", 3, |helper, target, args| {
        let named = |e: &Expr| matches!(e, Expr::Ident(name) if name == "cel");
        if !target.as_ref().is_some_and(|target| named(&target.expr)) {
            return Ok(None);
        }
        let name = match args.first().map(|name| (name.id, &name.expr)) {
            Some((_, Expr::Ident(name))) => name.clone(),
            Some((id, _)) => {
                return Err(
                    helper.new_error(id, "cel.bind() variable names must be simple identifiers")
                );
            }
            None => return Ok(None),
        };
        let _ = target.take();
        let result = args.pop().unwrap_or_default();
        let init = args.pop().unwrap_or_default();
        args.clear();
        let nothing = helper.next_expr(Expr::List(ListExpr::new(Vec::new())));
        let never = helper.next_expr(Expr::Literal(LiteralValue::Boolean(false.into())));
        let step = helper.next_expr(Expr::Ident(name.clone()));
        Ok(Some(helper.next_expr(Expr::Comprehension(Box::new(
            ComprehensionExpr {
                iter_range: nothing,
                iter_var: "#unused".to_owned(),
                iter_var2: None,
                accu_var: name,
                accu_init: init,
                loop_cond: never,
                loop_step: step,
                result,
            },
        )))))
    })
}

fn sign(ordering: Ordering) -> CelInt {
    CelInt::from(ordering as i64)
}

fn failed(function: &str, error: &dyn std::fmt::Display) -> ExecutionError {
    ExecutionError::function_error(function, error)
}

fn quantities(env: &mut Env) -> Result<(), DeclarationError> {
    fn quantity(text: &CelString<'_>) -> Result<Quantity, ExecutionError> {
        let amount = text.inner().parse::<Amount>();
        amount
            .map(Quantity)
            .map_err(|error| failed("quantity", &error))
    }
    fn is_quantity(text: &CelString<'_>) -> CelBool {
        text.inner().parse::<Amount>().is_ok().into()
    }
    const NANO: i128 = 1_000_000_000;
    fn whole(of: &Quantity) -> Option<i64> {
        let nano = of.0.nano_value();
        (nano % NANO == 0).then(|| i64::try_from(nano / NANO).ok())?
    }
    fn is_integer(this: &Quantity) -> CelBool {
        whole(this).is_some().into()
    }
    fn as_integer(this: &Quantity) -> Result<CelInt, ExecutionError> {
        let whole = whole(this).map(CelInt::from);
        whole.ok_or_else(|| failed("asInteger", &"cannot convert value to integer"))
    }
    fn as_approximate_float(this: &Quantity) -> CelDouble {
        CelDouble::from(this.0.as_f64())
    }
    fn sign_of(this: &Quantity) -> CelInt {
        sign(this.0.cmp(&Amount::ZERO))
    }
    fn units(number: &CelInt) -> Amount {
        Amount::new(*number.inner(), Format::DecimalExponent)
    }
    fn add(this: &Quantity, other: &Quantity) -> Quantity {
        Quantity(this.0 + other.0)
    }
    fn add_int(this: &Quantity, other: &CelInt) -> Quantity {
        Quantity(this.0 + units(other))
    }
    fn sub(this: &Quantity, other: &Quantity) -> Quantity {
        Quantity(this.0 - other.0)
    }
    fn sub_int(this: &Quantity, other: &CelInt) -> Quantity {
        Quantity(this.0 - units(other))
    }
    fn is_less_than(this: &Quantity, other: &Quantity) -> CelBool {
        (this.0 < other.0).into()
    }
    fn is_greater_than(this: &Quantity, other: &Quantity) -> CelBool {
        (this.0 > other.0).into()
    }
    fn compare_to(this: &Quantity, other: &Quantity) -> CelInt {
        sign(this.0.cmp(&other.0))
    }
    add_overload!(env, fn quantity: (CelString) -> Result<Quantity>)?;
    add_overload!(env, fn is_quantity: (CelString) -> CelBool)?;
    add_member_overload!(env, fn is_integer: (Quantity) -> CelBool)?;
    add_member_overload!(env, fn as_integer: (Quantity) -> Result<CelInt>)?;
    add_member_overload!(env, fn as_approximate_float: (Quantity) -> CelDouble)?;
    add_member_overload!(env, fn sign_of: (Quantity) -> CelInt, name = "sign")?;
    add_member_overload!(env, fn add: (Quantity, Quantity) -> Quantity)?;
    add_member_overload!(env, fn add_int: (Quantity, CelInt) -> Quantity, name = "add")?;
    add_member_overload!(env, fn sub: (Quantity, Quantity) -> Quantity)?;
    add_member_overload!(env, fn sub_int: (Quantity, CelInt) -> Quantity, name = "sub")?;
    add_member_overload!(env, fn is_less_than: (Quantity, Quantity) -> CelBool)?;
    add_member_overload!(env, fn is_greater_than: (Quantity, Quantity) -> CelBool)?;
    add_member_overload!(env, fn compare_to: (Quantity, Quantity) -> CelInt)
}

/// `v1.2` as `1.2.0`: without the `v` and leading zeros, and with what is missing. Upstream: `normalizeAndParse`.
fn normalized(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = Vec::new();
    for part in text.splitn(3, '.') {
        let mut part = part.to_owned();
        if part.len() > 1 {
            let trimmed = part.trim_start_matches('0');
            part = if trimmed.starts_with(|c: char| c.is_ascii_digit()) {
                trimmed.to_owned()
            } else {
                format!("0{trimmed}")
            };
        }
        parts.push(part);
    }
    if parts.len() < 3 {
        if parts.last().is_some_and(|last| last.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
    }
    Ok(parts.join("."))
}

fn parse_version(text: &str, normalize: bool) -> Result<Semver, String> {
    let text = if normalize {
        normalized(text)?
    } else {
        text.to_owned()
    };
    let version = semver::Version::parse(&text);
    version.map(Semver).map_err(|error| error.to_string())
}

fn versions(env: &mut Env) -> Result<(), DeclarationError> {
    fn semver(text: &CelString<'_>) -> Result<Semver, ExecutionError> {
        parse_version(text.inner(), false).map_err(|error| failed("semver", &error))
    }
    fn semver_normalized(
        text: &CelString<'_>,
        normalize: &CelBool,
    ) -> Result<Semver, ExecutionError> {
        let version = parse_version(text.inner(), *normalize.inner());
        version.map_err(|error| failed("semver", &error))
    }
    fn is_semver(text: &CelString<'_>) -> CelBool {
        parse_version(text.inner(), false).is_ok().into()
    }
    fn is_semver_normalized(text: &CelString<'_>, normalize: &CelBool) -> CelBool {
        parse_version(text.inner(), *normalize.inner())
            .is_ok()
            .into()
    }
    fn number(part: u64) -> CelInt {
        CelInt::from(i64::try_from(part).unwrap_or(i64::MAX))
    }
    fn major(this: &Semver) -> CelInt {
        number(this.0.major)
    }
    fn minor(this: &Semver) -> CelInt {
        number(this.0.minor)
    }
    fn patch(this: &Semver) -> CelInt {
        number(this.0.patch)
    }
    fn is_less_than(this: &Semver, other: &Semver) -> CelBool {
        this.compare(other).is_lt().into()
    }
    fn is_greater_than(this: &Semver, other: &Semver) -> CelBool {
        this.compare(other).is_gt().into()
    }
    fn compare_to(this: &Semver, other: &Semver) -> CelInt {
        sign(this.compare(other))
    }
    add_overload!(env, fn semver: (CelString) -> Result<Semver>)?;
    add_overload!(env, fn semver_normalized: (CelString, CelBool) -> Result<Semver>, name = "semver")?;
    add_overload!(env, fn is_semver: (CelString) -> CelBool)?;
    add_overload!(env, fn is_semver_normalized: (CelString, CelBool) -> CelBool, name = "isSemver")?;
    add_member_overload!(env, fn major: (Semver) -> CelInt)?;
    add_member_overload!(env, fn minor: (Semver) -> CelInt)?;
    add_member_overload!(env, fn patch: (Semver) -> CelInt)?;
    add_member_overload!(env, fn is_less_than: (Semver, Semver) -> CelBool)?;
    add_member_overload!(env, fn is_greater_than: (Semver, Semver) -> CelBool)?;
    add_member_overload!(env, fn compare_to: (Semver, Semver) -> CelInt)
}

type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

fn elements<'v>(list: &(dyn Val + 'v)) -> Vec<Box<dyn Val + 'v>> {
    let mut found = Vec::new();
    if let Some(list) = list.as_iterable() {
        let mut all = list.iter();
        while let Some(element) = all.next() {
            found.push(element.clone_as_boxed());
        }
    }
    found
}

fn has(list: &[Box<dyn Val + '_>], value: &dyn Val) -> bool {
    list.iter().any(|element| element.equals(value))
}

fn sets(env: &mut Env) -> Result<(), DeclarationError> {
    fn includes_all(all: &dyn Val, wanted: &dyn Val) -> bool {
        let all = elements(all);
        elements(wanted).iter().all(|value| has(&all, &**value))
    }
    fn contains<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        Ok(CowVal::owned(CelBool::from(includes_all(
            &*args[0], &*args[1],
        ))))
    }
    fn equivalent<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        let same = includes_all(&*args[0], &*args[1]) && includes_all(&*args[1], &*args[0]);
        Ok(CowVal::owned(CelBool::from(same)))
    }
    fn intersects<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        let all = elements(&*args[0]);
        let any = elements(&*args[1]).iter().any(|value| has(&all, &**value));
        Ok(CowVal::owned(CelBool::from(any)))
    }
    let lists = || vec![LIST_TYPE, LIST_TYPE];
    env.add_overload(
        "sets.contains",
        "list_sets_contains_list",
        lists(),
        contains,
    )?;
    env.add_overload(
        "sets.equivalent",
        "list_sets_equivalent_list",
        lists(),
        equivalent,
    )?;
    env.add_overload(
        "sets.intersects",
        "list_sets_intersects_list",
        lists(),
        intersects,
    )
}

fn lists(env: &mut Env) -> Result<(), DeclarationError> {
    fn index_of<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        let found = elements(&*args[0]).iter().position(|e| e.equals(&*args[1]));
        let index = found.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1);
        Ok(CowVal::owned(CelInt::from(index)))
    }
    fn last_index_of<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        let found = elements(&*args[0])
            .iter()
            .rposition(|e| e.equals(&*args[1]));
        let index = found.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1);
        Ok(CowVal::owned(CelInt::from(index)))
    }
    fn includes<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        let found = args[0].equals(&*args[1]) || has(&elements(&*args[0]), &*args[1]);
        Ok(CowVal::owned(CelBool::from(found)))
    }
    fn compared(a: &dyn Val, b: &dyn Val) -> Result<Ordering, ExecutionError> {
        let comparer = a.as_comparer();
        comparer
            .ok_or_else(|| {
                failed(
                    "compare",
                    &format!("no order among {}", a.get_type().name()),
                )
            })?
            .compare(b)
    }
    fn is_sorted<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        for pair in elements(&*args[0]).windows(2) {
            if compared(&*pair[0], &*pair[1])?.is_gt() {
                return Ok(CowVal::owned(CelBool::from(false)));
            }
        }
        Ok(CowVal::owned(CelBool::from(true)))
    }
    fn extreme<'v>(
        name: &str,
        list: &(dyn Val + 'v),
        wanted: Ordering,
    ) -> Result<Box<dyn Val + 'v>, ExecutionError> {
        let mut all = elements(list).into_iter();
        let empty = || failed(name, &format!("{name} called on empty list"));
        let mut best = all.next().ok_or_else(empty)?;
        for element in all {
            if compared(&*element, &*best)? == wanted {
                best = element;
            }
        }
        Ok(best)
    }
    fn min<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        extreme("min", &*args[0], Ordering::Less).map(CowVal::Owned)
    }
    fn max<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        extreme("max", &*args[0], Ordering::Greater).map(CowVal::Owned)
    }
    let any = || vec![DYN_TYPE];
    env.add_member_overload("indexOf", "list_a_index_of_int", LIST_TYPE, any(), index_of)?;
    env.add_member_overload(
        "lastIndexOf",
        "list_a_last_index_of_int",
        LIST_TYPE,
        any(),
        last_index_of,
    )?;
    env.add_member_overload("includes", "dyn_includes_dyn", DYN_TYPE, any(), includes)?;
    env.add_member_overload(
        "isSorted",
        "list_is_sorted_bool",
        LIST_TYPE,
        Vec::new(),
        is_sorted,
    )?;
    env.add_member_overload("min", "list_min_a", LIST_TYPE, Vec::new(), min)?;
    env.add_member_overload("max", "list_max_a", LIST_TYPE, Vec::new(), max)
}

fn regular_expressions(env: &mut Env) -> Result<(), DeclarationError> {
    fn compile(function: &str, pattern: &CelString<'_>) -> Result<Regex, ExecutionError> {
        Regex::new(pattern.inner()).map_err(|error| failed(function, &error))
    }
    fn find(
        this: &CelString<'_>,
        pattern: &CelString<'_>,
    ) -> Result<CelString<'static>, ExecutionError> {
        let found = compile("find", pattern)?
            .find(this.inner())
            .map(|m| m.as_str());
        Ok(text(found.unwrap_or_default()))
    }
    fn all(
        this: &CelString<'_>,
        pattern: &CelString<'_>,
        limit: usize,
    ) -> Result<CelList<'static>, ExecutionError> {
        let pattern = compile("findAll", pattern)?;
        let found = pattern.find_iter(this.inner()).take(limit);
        let found: Vec<Box<dyn Val>> = found
            .map(|m| Box::new(text(m.as_str())) as Box<dyn Val>)
            .collect();
        Ok(CelList::from(found))
    }
    fn find_all<'b, 'v>(args: Args<'b, 'v>) -> Outcome<'b, 'v> {
        let (Some(this), Some(pattern)) = (
            args[0].downcast_ref::<CelString>(),
            args[1].downcast_ref::<CelString>(),
        ) else {
            return Err(failed("findAll", &"no such overload"));
        };
        let limit = args.get(2).and_then(|n| n.downcast_ref::<CelInt>());
        let limit = limit.and_then(|n| usize::try_from(*n.inner()).ok());
        all(this, pattern, limit.unwrap_or(usize::MAX)).map(CowVal::owned)
    }
    use cel::common::types::STRING_TYPE;
    add_member_overload!(env, fn find: (CelString, CelString) -> Result<CelString>)?;
    env.add_member_overload(
        "findAll",
        "string_find_all_string",
        STRING_TYPE,
        vec![STRING_TYPE],
        find_all,
    )?;
    env.add_member_overload(
        "findAll",
        "string_find_all_string_int",
        STRING_TYPE,
        vec![STRING_TYPE, INT_TYPE],
        find_all,
    )
}

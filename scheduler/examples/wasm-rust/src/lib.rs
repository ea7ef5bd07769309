//! Greenest: prefers nodes whose power is clean, and rejects those whose power is not clean enough.
//!
//! A node says by a label how many grams of CO2 a kilowatt hour of it takes. Arguments: `{"label": "example.com/carbon-intensity", "most": 400}`.

use std::cell::RefCell;

use exports::gantry::scheduler::plugin::{Description, Guest, Node, Pod, Slot, Verdicts};
use gantry::scheduler::log::{Level, write};
use gantry::scheduler::types::{
    NodeFields, Normalize, PodFields, Points, Rejection, RejectionCode, Scope,
};
use serde_json::Value;

wit_bindgen::generate!({ path: "../../wasm/wit", world: "scheduler-plugin" });

/// What a node that says nothing is thought to take.
const UNKNOWN: i64 = 1000;

struct State {
    label: String,
    most: i64,
    /// The grams of each slot.
    grams: Vec<i64>,
}

thread_local! {
    static STATE: RefCell<State> = const {
        RefCell::new(State { label: String::new(), most: i64::MAX, grams: Vec::new() })
    };
}

struct Greenest;

impl Guest for Greenest {
    fn configure(arguments: String) -> Result<Description, String> {
        let arguments: Value = serde_json::from_str(&arguments).map_err(|e| e.to_string())?;
        let (mut label, mut most) = ("example.com/carbon-intensity".to_owned(), i64::MAX);
        for (name, value) in arguments.as_object().into_iter().flatten() {
            match (name.as_str(), value.as_str(), value.as_i64()) {
                ("label", Some(name), _) if !name.is_empty() => label = name.to_owned(),
                ("label", ..) => {
                    return Err(format!("label: Invalid value: {value}: must be a label's name"));
                }
                ("most", _, Some(grams)) if grams >= 0 => most = grams,
                ("most", ..) => {
                    return Err(format!(
                        "most: Invalid value: {value}: must be a number that is not negative"
                    ));
                }
                _ => return Err(format!("unknown arguments: {name}")),
            }
        }
        write(Level::Info, &format!("prefers nodes with a small {label}"));
        STATE.with_borrow_mut(|state| *state = State { label, most, grams: Vec::new() });
        Ok(Description {
            points: Points::FILTER | Points::SCORE,
            pod_fields: PodFields::empty(),
            node_fields: NodeFields::LABELS,
            scope: Scope::Node,
            normalize: Normalize::ByMaxReversed,
        })
    }

    fn update_nodes(nodes: Vec<Node>) {
        STATE.with_borrow_mut(|state| {
            for node in nodes {
                let mut labels = node.labels.iter();
                let text = labels.find(|(key, _)| *key == state.label);
                let grams = text.and_then(|(_, value)| value.parse::<u32>().ok());
                let slot = node.slot as usize;
                if slot >= state.grams.len() {
                    state.grams.resize(slot + 1, UNKNOWN);
                }
                state.grams[slot] = grams.map_or(UNKNOWN, i64::from);
            }
        });
    }

    fn filter(slots: Vec<Slot>, _pod: Pod) -> Result<Verdicts, String> {
        STATE.with_borrow(|state| {
            let verdict = |slot: &Slot| u16::from(state.grams[*slot as usize] > state.most);
            Ok(Verdicts {
                verdicts: slots.iter().map(verdict).collect(),
                rejections: vec![Rejection {
                    code: RejectionCode::Unresolvable,
                    reason: "node(s) had power that is not clean enough".to_owned(),
                }],
            })
        })
    }

    fn score(slots: Vec<Slot>, _pod: Pod) -> Result<Vec<i64>, String> {
        STATE.with_borrow(|state| {
            let grams = slots.iter().map(|slot| state.grams[*slot as usize]);
            Ok(grams.collect())
        })
    }
}

export!(Greenest);

//! What of an object is read: a field that has no reader is stepped over, and costs neither time nor memory.

use std::sync::LazyLock;

use crate::schema::{self, Message};

/// Everything but the fields that were named.
#[derive(Debug)]
pub struct View {
    /// By message: the places of fields that are stepped over, as bits.
    skipped: Vec<u128>,
}

impl View {
    /// All but `fields`, each of a message (`core.v1.Container`) by JSON's name (`env`); `managedFields` are left out as well.
    ///
    /// # Panics
    /// There is no such message or field: a view is written down with the program, and a test makes it.
    pub fn without(fields: &[(&str, &[&str])]) -> Self {
        let mut view = Self {
            skipped: vec![0; schema::len()],
        };
        view.skip("meta.v1.ObjectMeta", "managedFields");
        for (message, names) in fields {
            for name in *names {
                view.skip(message, name);
            }
        }
        view
    }

    fn skip(&mut self, name: &str, field: &str) {
        let message = schema::named(name).unwrap_or_else(|| panic!("no message {name}"));
        let place = message.fields.iter().position(|f| f.json == field);
        let place = place.unwrap_or_else(|| panic!("{name} has no field {field}"));
        self.skipped[usize::from(message.index)] |= 1 << place;
    }

    /// Everything there is.
    pub fn whole() -> &'static Self {
        static WHOLE: LazyLock<View> = LazyLock::new(|| View {
            skipped: vec![0; schema::len()],
        });
        &WHOLE
    }

    /// Everything but who set which field: most of an object's bytes, and read by few.
    pub fn without_managed_fields() -> &'static Self {
        static VIEW: LazyLock<View> = LazyLock::new(|| View::without(&[]));
        &VIEW
    }

    pub(crate) fn of(&self, message: &Message) -> u128 {
        self.skipped[usize::from(message.index)]
    }
}

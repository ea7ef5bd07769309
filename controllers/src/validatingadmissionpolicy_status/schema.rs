//! Types from OpenAPI v3 documents. Pure.
//!
//! Upstream: k8s.io/apiserver/pkg/cel/common/schemas.go (`SchemaDeclType`), pkg/cel/openapi/resolver/refs.go.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cel::Type;
use super::sync::GroupVersionKind;

const REF_PREFIX: &str = "#/components/schemas/";

/// The type of a kind's objects in the document of its group and version; `None` if the document does not have the kind, or says nothing
/// of its fields.
pub fn object_type(document: &Value, gvk: &GroupVersionKind) -> Option<Type> {
    let schemas = document["components"]["schemas"].as_object()?;
    let is_it = |schema: &&Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds.into_iter().flatten().any(|kind| {
            kind["group"] == gvk.group.as_str()
                && kind["version"] == gvk.version.as_str()
                && kind["kind"] == gvk.kind.as_str()
        })
    };
    let (name, schema) = schemas.iter().find(|(_, schema)| is_it(schema))?;
    let mut reader = Reader {
        document,
        within: vec![name.as_str()],
    };
    reader.read(schema, true, &gvk.kind)
}

struct Reader<'a> {
    document: &'a Value,
    /// The references that are being followed.
    within: Vec<&'a str>,
}

impl<'a> Reader<'a> {
    fn read(&mut self, schema: &'a Value, is_root: bool, name: &str) -> Option<Type> {
        let Some(reference) = reference(schema) else {
            return self.read_resolved(schema, is_root, name);
        };
        if self.within.contains(&reference) {
            // A circle; as upstream, an object that nothing is known of.
            return Some(Type::object(name, BTreeMap::new()));
        }
        let resolved = &self.document["components"]["schemas"][reference];
        self.within.push(reference);
        let is_root = is_root || is_set(resolved, "x-kubernetes-embedded-resource");
        let found = self.read_resolved(resolved, is_root, name);
        self.within.pop();
        found
    }

    fn read_resolved(&mut self, schema: &'a Value, is_root: bool, name: &str) -> Option<Type> {
        if schema["format"] == "int-or-string" || is_set(schema, "x-kubernetes-int-or-string") {
            return Some(Type::Dyn);
        }
        match schema["type"].as_str().unwrap_or_default() {
            "array" => {
                let items = schema.get("items")?;
                let of = self.read(items, is_embedded(items), &format!("{name}.@idx"))?;
                Some(Type::list(of))
            }
            "object" => self.object(schema, is_root, name),
            "string" => Some(match schema["format"].as_str().unwrap_or_default() {
                "byte" => Type::Bytes,
                "duration" => Type::Duration,
                "date" | "date-time" => Type::Timestamp,
                _ => Type::String,
            }),
            "boolean" => Some(Type::Bool),
            "number" => Some(Type::Double),
            "integer" => Some(Type::Int),
            _ => schema.get("oneOf").map(|_| Type::Dyn),
        }
    }

    fn object(&mut self, schema: &'a Value, is_root: bool, name: &str) -> Option<Type> {
        let mut fields = BTreeMap::new();
        let values = schema.get("additionalProperties").filter(|v| v.is_object());
        // A root has fields of its own beside whatever it says.
        if let Some(values) = values {
            let of = self.read(values, is_embedded(values), &format!("{name}.@elem"))?;
            return Some(Type::map(Type::String, of));
        }
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let Some(escaped) = escape(field) else {
                continue;
            };
            let of = self.read(property, is_embedded(property), &format!("{name}.{field}"));
            if let Some(of) = of {
                fields.insert(escaped, of);
            }
        }
        if is_root {
            for always in ["kind", "apiVersion"] {
                fields.insert(always.to_owned(), Type::String);
            }
            let knows_names = matches!(fields.get("metadata"), Some(Type::Struct(metadata))
                if ["name", "generateName"].iter().all(|f| metadata.fields.contains_key(*f)));
            if !knows_names {
                let names = ["name", "generateName"].map(|f| (f.to_owned(), Type::String));
                let metadata = Type::object(format!("{name}.metadata"), names.into());
                fields.insert("metadata".to_owned(), metadata);
            }
        }
        Some(Type::object(name, fields))
    }
}

fn is_set(schema: &Value, extension: &str) -> bool {
    schema[extension] == true
}

fn is_embedded(schema: &Value) -> bool {
    is_set(schema, "x-kubernetes-embedded-resource")
}

/// Where a schema says that it is another one, if it does; a reference with a description stands in `allOf`.
fn reference(schema: &Value) -> Option<&str> {
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.strip_prefix(REF_PREFIX);
    }
    schema["allOf"].as_array()?.iter().find_map(reference)
}

/// Words of the language. Upstream: `celReservedSymbols`.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name expressions use for a field; `None` if they cannot name it. Upstream: apiserver/pkg/cel/escaping.go.
fn escape(field: &str) -> Option<String> {
    if field.is_empty() || field.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&field) {
        return Some(format!("__{field}__"));
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
    field.chars().all(known).then(|| {
        field
            .replace("__", "__underscores__")
            .replace('.', "__dot__")
            .replace('-', "__dash__")
            .replace('/', "__slash__")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_become_types() {
        let document = json!({ "components": { "schemas": {
            "thing": {
                "type": "object",
                "x-kubernetes-group-version-kind": [{ "group": "g", "version": "v1", "kind": "Thing" }],
                "properties": {
                    "spec": { "allOf": [{ "$ref": "#/components/schemas/spec" }], "description": "d" },
                    "metadata": { "type": "object" },
                },
            },
            "spec": { "type": "object", "properties": {
                "replicas": { "type": "integer", "format": "int32" },
                "ratio": { "type": "number" },
                "at": { "type": "string", "format": "date-time" },
                "data": { "type": "object", "additionalProperties": { "type": "string", "format": "byte" } },
                "free": { "type": "object", "additionalProperties": true },
                "port": { "format": "int-or-string", "oneOf": [] },
                "limits": { "type": "object", "additionalProperties": { "$ref": "#/components/schemas/quantity" } },
                "a-b": { "type": "boolean" },
                "namespace": { "type": "string" },
                "1x": { "type": "string" },
                "unknown": {},
                "children": { "type": "array", "items": { "$ref": "#/components/schemas/spec" } },
            }},
            "quantity": { "oneOf": [{ "type": "string" }, { "type": "number" }] },
        }}});
        let gvk = GroupVersionKind {
            group: "g".into(),
            version: "v1".into(),
            kind: "Thing".into(),
        };
        let Some(Type::Struct(thing)) = object_type(&document, &gvk) else {
            panic!("an object")
        };
        assert_eq!(thing.fields["kind"], Type::String);
        let Type::Struct(metadata) = &thing.fields["metadata"] else {
            panic!("an object")
        };
        assert!(metadata.fields.contains_key("generateName"));
        let Type::Struct(spec) = &thing.fields["spec"] else {
            panic!("an object")
        };
        let shown: Vec<String> = spec
            .fields
            .iter()
            .map(|(name, of)| format!("{name}: {of}"))
            .collect();
        assert_eq!(
            shown,
            [
                "__namespace__: string",
                "a__dash__b: bool",
                "at: timestamp",
                "children: list(Thing.spec.children.@idx)",
                "data: map(string, bytes)",
                "free: Thing.spec.free",
                "limits: map(string, dyn)",
                "port: dyn",
                "ratio: double",
                "replicas: int",
            ]
        );
        let other = GroupVersionKind {
            kind: "Other".into(),
            ..gvk
        };
        assert!(object_type(&document, &other).is_none());
    }
}

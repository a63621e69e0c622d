//! JSON by `serde_json`, with the look-ups that results need. Objects keep their order.

pub use serde_json::Value as Json;

use crate::util::Result;

/// Reads one value and nothing behind it.
pub fn parse(text: &str) -> Result<Json> {
    serde_json::from_str(text).map_err(|e| format!("JSON: {e}"))
}

/// An object of these members, in this order.
pub fn object<K: Into<String>>(members: impl IntoIterator<Item = (K, Json)>) -> Json {
    Json::Object(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

/// Members of an object by their name and kind.
pub trait Look {
    /// A number; none if there is no such member, or another kind of one.
    fn number(&self, key: &str) -> Option<f64>;
    /// A text; empty when there is none.
    fn text(&self, key: &str) -> &str;
    /// The elements of a list; none when there is no list.
    fn list(&self, key: &str) -> &[Json];
}

impl Look for Json {
    fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Json::as_str).unwrap_or_default()
    }

    fn list(&self, key: &str) -> &[Json] {
        self.get(key).and_then(Json::as_array).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_by_name_and_kind_in_their_order() {
        let value = parse(r#"{"b":[1,-2.5,1e-3,null],"a":{"c":"q\"\\ é"},"n":2}"#).unwrap();
        assert_eq!(value.list("b").len(), 4);
        assert_eq!(value.get("a").unwrap().text("c"), "q\"\\ é");
        assert_eq!((value.number("n"), value.number("a"), value.text("n")), (Some(2.0), None, ""));
        assert!(value.to_string().starts_with("{\"b\":"));
    }

    #[test]
    fn broken_texts_are_errors_that_say_where() {
        for text in ["", "{", "[1 2]", "{\"a\" 1}", "\"open", "nul", "[1] 2", "{1:2}"] {
            assert!(parse(text).unwrap_err().starts_with("JSON: "), "{text}");
        }
    }

    #[test]
    fn numbers_that_json_lacks_become_null() {
        assert_eq!(Json::from(vec![f64::NAN, 0.5]).to_string(), "[null,0.5]");
    }
}

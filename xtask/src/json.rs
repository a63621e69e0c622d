//! JSON, as much of it as results need: read, look up, write.

use std::fmt;

use crate::util::Result;

/// Any JSON value. Objects keep their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Numbers are f64.
    Number(f64),
    /// Strings.
    Text(String),
    /// `[...]`
    List(Vec<Json>),
    /// `{...}`
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads one value and nothing behind it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value()?;
        reader.space();
        if reader.at == text.len() { Ok(value) } else { Err(reader.wrong("the end")) }
    }

    /// A member of an object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// A number inside an object.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key) {
            Some(Self::Number(n)) => Some(*n),
            _ => None,
        }
    }

    /// A text inside an object; empty when there is none.
    pub fn text(&self, key: &str) -> &str {
        match self.get(key) {
            Some(Self::Text(t)) => t,
            _ => "",
        }
    }

    /// The elements of a list inside an object.
    pub fn list(&self, key: &str) -> &[Self] {
        match self.get(key) {
            Some(Self::List(l)) => l,
            _ => &[],
        }
    }

    /// A text value.
    pub fn of(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Json {
    /// On one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Number(n) if n.is_finite() => write!(f, "{n}"),
            Self::Number(_) => f.write_str("null"),
            Self::Text(t) => quoted(f, t),
            Self::List(list) => {
                f.write_str("[")?;
                for (i, value) in list.iter().enumerate() {
                    write!(f, "{}{value}", if i > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                for (i, (key, value)) in members.iter().enumerate() {
                    f.write_str(if i > 0 { "," } else { "" })?;
                    quoted(f, key)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn wrong(&self, wanted: &str) -> String {
        format!("JSON: {wanted} expected at byte {}", self.at)
    }

    /// Goes past a word, if it comes next.
    fn takes(&mut self, word: &str) -> bool {
        self.space();
        let there = self.rest().starts_with(word);
        self.at += if there { word.len() } else { 0 };
        there
    }

    fn value(&mut self) -> Result<Json> {
        for (word, value) in [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))] {
            if self.takes(word) {
                return Ok(value);
            }
        }
        if self.takes("[") {
            return Ok(Json::List(self.sequence("]", Self::value)?));
        }
        if self.takes("{") {
            return Ok(Json::Object(self.sequence("}", Self::member)?));
        }
        if self.takes("\"") {
            return self.string().map(Json::Text);
        }
        let length = self.rest().find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(self.rest().len());
        let number = self.rest()[..length].parse().map_err(|_| self.wrong("a value"))?;
        self.at += length;
        Ok(Json::Number(number))
    }

    fn member(&mut self) -> Result<(String, Json)> {
        if !self.takes("\"") {
            return Err(self.wrong("a key"));
        }
        let key = self.string()?;
        if self.takes(":") { Ok((key, self.value()?)) } else { Err(self.wrong("`:`")) }
    }

    fn sequence<T>(&mut self, end: &str, one: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        if self.takes(end) {
            return Ok(all);
        }
        loop {
            all.push(one(self)?);
            if self.takes(end) {
                return Ok(all);
            }
            if !self.takes(",") {
                return Err(self.wrong("`,`"));
            }
        }
    }

    /// Behind the opening quote. Characters outside the basic plane are not written as escapes by us.
    fn string(&mut self) -> Result<String> {
        let mut out = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('u') => {
                        let hex: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                        let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                        out.push(code.ok_or_else(|| self.wrong("a character code"))?);
                    }
                    Some(c) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err(self.wrong("the end of a string"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let text = r#"{"a":[1,-2.5,1e-3,null,true],"b":{"c":"q\"\\ \u000a é"},"d":[],"e":{}}"#;
        let value = Json::parse(text).unwrap();
        assert_eq!(Json::parse(&value.to_string()).unwrap(), value);
        assert_eq!(value.list("a")[2], Json::Number(0.001));
        assert_eq!(value.get("b").unwrap().text("c"), "q\"\\ \n é");
    }

    #[test]
    fn broken_texts_are_errors_that_say_where() {
        for text in ["", "{", "[1 2]", "{\"a\" 1}", "\"open", "nul", "[1] 2", "{1:2}"] {
            assert!(Json::parse(text).unwrap_err().starts_with("JSON: "), "{text}");
        }
    }

    #[test]
    fn numbers_that_json_lacks_become_null() {
        assert_eq!(Json::List(vec![Json::Number(f64::NAN), Json::Number(0.5)]).to_string(), "[null,0.5]");
    }
}

//! Values as YAML, in the block style that people write, and safe for any text.

use serde_json::Value;

/// A value at that depth, to stand behind `key:`: a scalar on the same line, a map or list on lines of its own.
pub(crate) fn after_key(value: &Value, indent: usize) -> String {
    match value {
        Value::Object(map) if !map.is_empty() => format!("\n{}", block(value, indent)),
        Value::Array(list) if !list.is_empty() => format!("\n{}", block(value, indent)),
        value => format!(" {}\n", scalar(value)),
    }
}

/// Lines of a map or list, each with its line break.
pub(crate) fn block(value: &Value, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let deeper = indent.saturating_add(2);
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().map(|(key, value)| format!("{pad}{}:{}", text(key), after_key(value, deeper))).collect()
        }
        Value::Array(list) if !list.is_empty() => list.iter().map(|item| entry(item, indent)).collect(),
        value => format!("{pad}{}\n", scalar(value)),
    }
}

/// A list's entry: what is a map begins on the line of the dash.
fn entry(item: &Value, indent: usize) -> String {
    let lines = block(item, indent.saturating_add(2));
    format!("{}- {}", " ".repeat(indent), lines.trim_start())
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        value => value.to_string(),
    }
}

/// Plain where that is surely read as this text, else quoted as JSON, which is YAML.
pub(crate) fn text(string: &str) -> String {
    let mut letters = string.chars();
    let begins = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '/');
    let goes_on = letters.all(|letter| letter.is_ascii_alphanumeric() || "-_./".contains(letter));
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&string.to_lowercase().as_str());
    if begins && goes_on && !word { string.to_owned() } else { Value::from(string).to_string() }
}

/// `text` as comment lines at that depth.
pub(crate) fn comment(text: &str, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let width = 118_usize.saturating_sub(indent);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len().saturating_add(word.len()) < width => line.extend([" ", word]),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| format!("{pad}# {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_says_the_same() {
        let value = json!({
            "a": { "b": [1, "2", { "c": "on", "d": [] }, ["x", ["y"]]], "e f": null, "g": "outbound|80||a.b", "h": {} },
            "i": "/rules", "j": true, "k": 0.5, "l": "a: b", "m": "%X%", "n": "5s", "o": "",
        });
        let written = block(&value, 2);
        let read: Value = serde_saphyr::from_str(&written).unwrap_or_else(|why| panic!("{why}\n{written}"));
        assert_eq!(read, value, "{written}");
        assert!(written.contains("\n  i: /rules\n") && written.contains("\"n\": \"5s\""), "{written}");
    }

    #[test]
    fn a_comment_is_broken_between_words() {
        let written = comment(&"word ".repeat(60), 4);
        assert!(
            written.lines().count() == 3 && written.lines().all(|line| line.starts_with("    # word")),
            "{written}"
        );
        assert!(written.lines().all(|line| line.len() <= 120), "{written}");
    }
}

//! Lone UTF-16 surrogates in JSON escapes (`"\ud83d"` without its other half): browsers send them when they cut a string
//! in the middle of an emoji. They are no Unicode, so that strict readers refuse the whole document.

use std::borrow::Cow;

/// Replaces every lone surrogate escape by `\ufffd`, the replacement character. All else stays byte by byte.
pub fn replace_lone(json: &str) -> Cow<'_, str> {
    if !json.contains("\\ud") && !json.contains("\\uD") {
        return Cow::Borrowed(json);
    }
    let bytes = json.as_bytes();
    let mut lone = Vec::new();
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        let escape = at + found;
        at = escape
            + match (unit(bytes, escape), unit(bytes, escape + 6)) {
                (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
                (Some(0xD800..=0xDFFF), _) => {
                    lone.push(escape);
                    6
                }
                (Some(_), _) => 6,
                (None, _) => 2,
            };
        if at >= bytes.len() {
            break;
        }
    }
    if lone.is_empty() {
        return Cow::Borrowed(json);
    }
    let mut repaired = String::with_capacity(json.len());
    let mut copied = 0;
    for escape in lone {
        repaired.push_str(&json[copied..escape]);
        repaired.push_str("\\ufffd");
        copied = escape + 6;
    }
    repaired.push_str(&json[copied..]);
    Cow::Owned(repaired)
}

/// The UTF-16 unit of the escape `\uXXXX` that begins here.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?;
    if escape[0] != b'\\' || escape[1] != b'u' {
        return None;
    }
    escape[2..].iter().try_fold(0_u16, |value, digit| {
        let digit = char::from(*digit).to_digit(16)? as u16;
        Some(value << 4 | digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lone_surrogates_change() {
        let cases = [
            (r#"{"a":"plain"}"#, r#"{"a":"plain"}"#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\uD83D\uDE00""#, r#""\uD83D\uDE00""#),
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""\ude00 and \ud83d""#, r#""\ufffd and \ufffd""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\\ud83d""#, r#""\\ud83d""#),
            (r#""\\\ud83d""#, r#""\\\ufffd""#),
            (r#""é\ud83dé""#, r#""é\ufffdé""#),
            (r#""\ud8"#, r#""\ud8"#),
            ("\\ud83d\\", "\\ufffd\\"),
        ];
        for (json, expected) in cases {
            assert_eq!(replace_lone(json), expected, "{json}");
        }
    }
}

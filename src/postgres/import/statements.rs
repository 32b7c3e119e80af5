//! A script of pg_dump's or pg_dumpall's, statement by statement. Pure. For scripts without bodies of functions.

/// The statements, each with its line break; a name or a text may go over several lines. Comments and psql's own commands are left
/// out.
pub(super) fn statements(script: &str) -> Vec<String> {
    let (mut all, mut open) = (Vec::new(), String::new());
    for line in script.split_inclusive('\n') {
        if open.is_empty() && (line.trim().is_empty() || line.starts_with("--") || line.starts_with('\\')) {
            continue;
        }
        open.push_str(line);
        if is_whole(&open) {
            all.push(std::mem::take(&mut open));
        }
    }
    all
}

/// Whether it ends with a semicolon that is no part of a name or of a text. A quote within quotes is doubled, so it closes and opens.
fn is_whole(text: &str) -> bool {
    let mut inside = None;
    for character in text.chars().filter(|c| matches!(c, '\'' | '"')) {
        inside = match inside {
            None => Some(character),
            Some(quote) if quote == character => None,
            Some(quote) => Some(quote),
        };
    }
    inside.is_none() && text.trim_end().ends_with(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_may_look_like_anything() {
        let script = "--\n-- Name: x\n\n\\connect x\nSET a = 'b';\nCOMMENT ON DATABASE \"it's\" IS 'one;\n-- two\n\\three';\n\
            GRANT CONNECT\n  ON DATABASE x TO y;\n";
        let found = statements(script);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found.iter().any(|s| s.contains("\n-- two\n\\three';\n")), "{found:#?}");
    }
}

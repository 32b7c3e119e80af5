//! The dynamic configuration as YAML, which people know from patronictl. JSON reads as YAML too.

use anyhow::Context as _;
use serde_json::Value;

/// Reads YAML or JSON.
///
/// # Errors
/// It is neither.
pub fn read(text: &str) -> anyhow::Result<Value> {
    serde_saphyr::from_str(text).context("could not read YAML")
}

/// Writes YAML; what cannot be written so is written as JSON, which is YAML as well.
pub fn write(value: &Value) -> String {
    let mut text = serde_saphyr::to_string(value).unwrap_or_else(|_refused| format!("{value:#}"));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let config = json!({"ttl": 30, "pause": true, "empty": {}, "none": null, "text": "on", "number": "10",
            "postgresql": {"parameters": {"work_mem": "8MB"}, "pg_hba": ["host all all 0.0.0.0/0 md5", "# x: y"]}});
        assert_eq!(read(&write(&config)).unwrap(), config);
        assert_eq!(read(&config.to_string()).unwrap(), config);
    }

    #[test]
    fn scalars_have_their_types() {
        assert_eq!(read("20").unwrap(), json!(20));
        assert_eq!(read("8MB").unwrap(), json!("8MB"));
        assert_eq!(read("null").unwrap(), json!(null));
        assert_eq!(read("false").unwrap(), json!(false));
    }
}

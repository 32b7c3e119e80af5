//! `/why`: what this node decided and on what, what is under way, and what would happen if the primary died now. Pure.

use serde_json::{Value, json};

use super::status::to_json;
use crate::clock::Moment;
use crate::ha;
use crate::ha::forecast::Forecast;

/// The whole page.
pub fn why_json(status: &ha::Status, now: Moment) -> Value {
    json!({
        "scope": status.scope,
        "name": status.name,
        "role": to_json(super::status::role(status)),
        "state": to_json(status.state),
        "reason": status.reason,
        "doing": status.doing.map(|doing| json!({
            "job": doing.job.words(),
            "seconds": now.since(doing.since).as_secs_f64(),
        })),
        "looked_seconds_ago": now.since(status.ticked).as_secs_f64(),
        "looks_again_in_seconds": now.until(status.looks_again).as_secs_f64(),
        "if_the_primary_dies": forecast(&status.forecast),
        "decisions": status.trail.steps().map(|step| {
            let mut page = to_json(step);
            if let Some(page) = page.as_object_mut() {
                page.insert("times".into(), step.times.into());
            }
            page
        }).collect::<Vec<_>>(),
    })
}

fn forecast(forecast: &Forecast) -> Value {
    match forecast {
        Forecast::Unknown => json!({ "known": false }),
        Forecast::Succeeded { by, within, at_risk } => json!({
            "known": true,
            "leader": by,
            "within_seconds": within.as_secs_f64(),
            "bytes_at_risk": at_risk,
        }),
        Forecast::Stuck(whys) => json!({ "known": true, "leader": null, "nobody_because": whys }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{primary, replica};
    use super::*;

    const NOW: Moment = Moment(1_000_000_000_000);

    #[test]
    fn the_page_tells_what_was_decided_and_who_takes_over() {
        let page = why_json(&primary(NOW), NOW);
        assert_eq!(page.pointer("/if_the_primary_dies/leader"), Some(&json!("n1")));
        assert_eq!(page.pointer("/if_the_primary_dies/bytes_at_risk"), Some(&json!(0)));
        assert_eq!(page.pointer("/decisions/0/kind"), Some(&json!("promoting")));
        assert_eq!(page.pointer("/decisions/0/inputs/leader"), Some(&json!("n0")));
        assert_eq!(page.pointer("/looks_again_in_seconds"), Some(&json!(3.0)));
    }

    #[test]
    fn nobody_has_a_reason_by_name() {
        let whys = [(crate::types::NodeName::from("n1"), "1 of 2 votes".to_owned())].into();
        let status = ha::Status { forecast: Forecast::Stuck(whys), ..replica("n2", 0, NOW) };
        let page = why_json(&status, NOW);
        assert_eq!(page.pointer("/if_the_primary_dies/nobody_because/n1"), Some(&json!("1 of 2 votes")));
    }
}

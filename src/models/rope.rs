//! What configs of all ages say of rotary positions.

use serde_json::Value;

use crate::{
    Result,
    weights::{Fields, shown},
};

/// Objects that say how frequencies are scaled: transformers' name until version 4, and since version 5.
const OBJECTS: [(&str, [&str; 2], &str); 2] = [
    ("rope_scaling", ["rope_scaling.rope_type", "rope_scaling.type"], "rope_scaling.factor"),
    ("rope_parameters", ["rope_parameters.rope_type", "rope_parameters.type"], "rope_parameters.factor"),
];
const THETA: [&str; 3] = ["rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta"];
const SHARE: [&str; 4] = [
    "rotary_percent",
    "partial_rotary_factor",
    "rope_parameters.partial_rotary_factor",
    "rope_scaling.partial_rotary_factor",
];
/// What such an object may hold without saying that anything is scaled.
const PLAIN: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];

/// Rotary positions of frequencies that are not scaled.
pub(super) struct Rope {
    /// The base of the frequencies, where the config has one.
    pub theta: Option<f32>,
    /// The part of a head's channels that is rotated, where the config says.
    pub share: Option<f32>,
}

impl Rope {
    /// # Errors
    /// When the config contradicts itself or wants scaled frequencies.
    pub fn read(fields: &Fields<'_>) -> Result<Self> {
        for (object, kinds, factor) in OBJECTS {
            check_scaling(fields, object, kinds, factor)?;
        }
        Ok(Self {
            theta: fields.optional_number(&THETA, 1.0..=1e12)?,
            share: fields.optional_number(&SHARE, 0.0..=1.0)?,
        })
    }

    /// The base, where every channel of a head must be rotated.
    pub fn whole(fields: &Fields<'_>) -> Result<Option<f32>> {
        fields.only(&SHARE, &Value::from(1.0), "every channel of a head is rotated")?;
        Ok(Self::read(fields)?.theta)
    }

    /// Both, where neither has a default.
    pub fn stated(fields: &Fields<'_>) -> Result<(f32, f32)> {
        let Self { theta, share } = Self::read(fields)?;
        let missing = |names: &[&'static str]| fields.missing(&names[..1]);
        Ok((theta.ok_or_else(|| missing(&THETA))?, share.ok_or_else(|| missing(&SHARE))?))
    }
}

/// Refuses scaled frequencies. `default` scales nothing whatever stands beside it, nor does `linear` by 1.
fn check_scaling(
    fields: &Fields<'_>,
    object: &'static str,
    kinds: [&'static str; 2],
    factor: &'static str,
) -> Result<()> {
    const WHY: &str = "rotary frequencies are not scaled yet";
    let Some((_, value)) = fields.get(&[object])? else { return Ok(()) };
    let Some(map) = value.as_object() else {
        return Err(fields.bad(object, shown(value), "an object"));
    };
    match fields.get(&kinds)? {
        Some((_, kind)) if kind == "default" => Ok(()),
        Some((_, kind)) if kind == "linear" && is_one(fields, factor) => Ok(()),
        Some((name, kind)) => Err(fields.unsupported(format!("{name} = {}", shown(kind)), WHY)),
        None if map.iter().all(|(name, value)| value.is_null() || PLAIN.contains(&name.as_str())) => Ok(()),
        None => Err(fields.unsupported(object, WHY)),
    }
}

fn is_one(fields: &Fields<'_>, name: &'static str) -> bool {
    matches!(fields.optional_number(&[name], 1.0..=1.0), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theta(config: &str) -> Result<Option<f32>> {
        Rope::whole(&Fields::parse(config.as_bytes(), "m/config.json")?)
    }

    #[test]
    fn what_scales_nothing_is_accepted_in_every_form() {
        for config in [
            r#"{"rope_theta": 5e5}"#,
            r#"{"rope_theta": 500000, "rope_scaling": null}"#,
            r#"{"rope_theta": 5e5, "rope_scaling": {}}"#,
            r#"{"rope_theta": 5e5, "rope_scaling": {"rope_type": "default", "rope_theta": 500000.0}}"#,
            r#"{"rope_scaling": {"type": "default", "factor": 8.0, "rope_theta": 500000.0}}"#,
            r#"{"rope_parameters": {"rope_type": "default", "type": "default", "rope_theta": 500000.0}}"#,
            r#"{"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1, "factor": null}}"#,
            r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 1.0}}"#,
            r#"{"rope_theta": 5e5, "partial_rotary_factor": 1.0, "rotary_percent": 1}"#,
        ] {
            assert_eq!(theta(config).unwrap(), Some(5e5), "{config}");
        }
        assert_eq!(theta(r#"{"rope_scaling": {"type": "default"}}"#).unwrap(), None);
        for (config, part) in [
            (r#"{"rope_scaling": {"type": "linear", "factor": 2}}"#, "rope_scaling.type = \"linear\" is not"),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "rope_scaling.type = \"linear\" is not"),
            (
                r#"{"rope_parameters": {"rope_type": "llama3"}}"#,
                "rope_parameters.rope_type = \"llama3\" is not",
            ),
            (r#"{"rope_scaling": {"factor": 2}}"#, "rope_scaling is not supported"),
            (
                r#"{"rope_parameters": {"full_attention": {"rope_type": "default"}}}"#,
                "rope_parameters is not",
            ),
            (r#"{"rope_scaling": "yarn"}"#, "rope_scaling: found \"yarn\", expected an object"),
            (
                r#"{"rope_scaling": {"rope_type": "default", "type": "yarn"}}"#,
                "rope_scaling.rope_type and rope_scaling.type",
            ),
            (
                r#"{"rope_theta": 1e4, "rope_scaling": {"type": "default", "rope_theta": 5e5}}"#,
                "rope_theta and rope_scaling",
            ),
            (r#"{"partial_rotary_factor": 0.5}"#, "partial_rotary_factor = 0.5 is not supported"),
            (r#"{"rope_theta": NaN}"#, "rope_theta: found \"NaN\", expected a number"),
        ] {
            let error = theta(config).unwrap_err().to_string();
            assert!(
                error.starts_with("m/config.json: ") && error.contains(part),
                "{error} should say {part}"
            );
        }
    }
}

//! Random damage to a good model.

use super::FIXTURES;
use super::build::Model;
use headwise::fuzzing::check_checkpoint;
use proptest::prelude::*;
use std::path::Path;

fn tiny() -> (Vec<u8>, Vec<u8>) {
    let read = |name: &str| std::fs::read(Path::new(FIXTURES).join("jetmoe_tiny").join(name)).unwrap();
    (read("model.safetensors"), read("config.json"))
}

/// One act of damage: where (as a fraction of the length), and what.
#[derive(Debug, Clone)]
enum Damage {
    Flip(f64, u8),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    Cut(f64),
    /// Replaces the number that starts next.
    Number(f64, &'static str),
}

const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "3",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "0.5",
];

fn damage() -> impl Strategy<Value = Damage> {
    let at = || 0.0..1.0;
    prop_oneof![
        (at(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), 1usize..99).prop_map(|(at, count)| Damage::Remove(at, count)),
        at().prop_map(Damage::Cut),
        (at(), prop::sample::select(&NUMBERS[..])).prop_map(|(at, number)| Damage::Number(at, number)),
    ]
}

/// Damages the first `reach` bytes.
fn apply(bytes: &mut Vec<u8>, damage: &Damage, reach: usize) {
    let reach = reach.min(bytes.len());
    let place = |at: &f64| (at * reach as f64) as usize;
    match damage {
        Damage::Flip(at, bits) => bytes.get_mut(place(at)).into_iter().for_each(|b| *b ^= bits),
        Damage::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
        Damage::Remove(at, count) => drop(bytes.drain(place(at)..(place(at) + count).min(reach))),
        Damage::Cut(at) => bytes.truncate(place(at)),
        Damage::Number(at, number) => {
            let digit = |b: &u8| b.is_ascii_digit();
            if let Some(start) = bytes[place(at)..reach].iter().position(digit).map(|n| place(at) + n) {
                let end = start + bytes[start..reach].iter().take_while(|b| digit(b)).count();
                bytes.splice(start..end, number.bytes());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_damage_never_panics(
        to_weights in prop::collection::vec(damage(), 0..4),
        to_config in prop::collection::vec(damage(), 0..3),
        header_only in any::<bool>(),
        repair_length in any::<bool>(),
    ) {
        let (mut weights, mut config) = tiny();
        let (header, len) = (8 + u64::from_le_bytes(weights[..8].try_into().unwrap()), weights.len() as u64);
        let reach = if header_only { header as usize } else { usize::MAX };
        to_weights.iter().for_each(|damage| apply(&mut weights, damage, reach));
        to_config.iter().for_each(|damage| apply(&mut config, damage, usize::MAX));
        if repair_length && header_only && weights.len() > 8 {
            // So that the damage is met behind the first check.
            let length = (header - 8).wrapping_add(weights.len() as u64).wrapping_sub(len);
            weights[..8].copy_from_slice(&length.to_le_bytes());
        }
        if let Err(error) = check_checkpoint(&weights, &config) {
            prop_assert!(error.to_string().starts_with("memory/"), "{error}");
            prop_assert!(error.to_string().len() < 1500, "{error}");
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), config in ".{0,200}") {
        prop_assert!(check_checkpoint(&bytes, &Model::small().config()).is_err());
        prop_assert!(check_checkpoint(&Model::small().weights(), config.as_bytes()).is_err());
    }
}

//! Numbers on the command line. What is none, or has the wrong sign, is refused in plain words; ranges are the library's.

use std::str::FromStr;

use clap::Command;

/// Lets negative numbers be values: where none is expected, the parsers here say so, and clap does not take it for an option.
pub fn allow_negative(command: Command) -> Command {
    let allow = |arg: clap::Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(allow).mut_subcommands(allow_negative)
}

/// Reads a whole number that is not negative.
pub fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number = text.trim().parse::<u64>().ok().and_then(|number| T::try_from(number).ok());
    let most = u64::MAX >> (64 - 8 * size_of::<T>());
    number.ok_or_else(|| format!("expected a whole number from 0 to {most}"))
}

/// Reads a number that is not negative.
pub fn not_negative<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    finite(text)
        .ok()
        .filter(|&number: &T| number.into() >= 0.0)
        .ok_or_else(|| "expected a finite number of 0 or more, such as 0.8".to_owned())
}

/// Reads a number of either sign.
pub fn finite<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    let number = text.trim().parse::<T>().ok().filter(|&number| number.into().is_finite());
    number.ok_or_else(|| "expected a finite number, such as 0.8".to_owned())
}

/// Reads a token and what is added to its logit, as in 42=-1.5 or 42=-inf.
pub fn bias(text: &str) -> Result<(u32, f32), String> {
    let read = |(id, bias): (&str, &str)| {
        let bias = if bias.trim() == "-inf" { f32::NEG_INFINITY } else { finite(bias).ok()? };
        Some((whole(id).ok()?, bias))
    };
    let read = text.split_once('=').and_then(read);
    read.ok_or_else(|| "expected a token and a number, such as 42=-1.5, or 42=-inf to ban it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        assert_eq!(whole::<u32>(" 4294967295 "), Ok(u32::MAX));
        assert_eq!(whole::<u64>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(whole::<usize>("0"), Ok(0));
        assert_eq!((not_negative("1e38"), not_negative("0")), (Ok(1e38f32), Ok(0f32)));
        assert_eq!(finite("-0.5"), Ok(-0.5f64));
        assert_eq!(bias("42=-1.5"), Ok((42, -1.5)));
        assert_eq!(bias("0 = -inf"), Ok((0, f32::NEG_INFINITY)));
        for text in ["42", "=1", "42=", "-1=2", "1=nan", "1=inf", "1=2=3", "1:2"] {
            assert!(bias(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["-1", "4294967296", "1.0", "1e3", "", "one", "0x10", "1,000", "١"] {
            let message = "expected a whole number from 0 to 4294967295";
            assert_eq!(whole::<u32>(text), Err(message.to_owned()), "{text}");
        }
        for text in ["-1", "-1e-9", "1e39", "inf", "-inf", "nan", "", "0,8", "0.8x"] {
            assert!(not_negative::<f32>(text).is_err(), "{text}");
        }
        assert!(finite::<f64>("-inf").is_err());
    }
}

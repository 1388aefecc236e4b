//! `headwise chat`

use std::{
    io::{BufRead, BufReader, Read, Write},
    ops::ControlFlow,
    path::Path,
    process::{Child, Command, Stdio},
};

use headwise::{Chat, ChatMessage, Generate, block_on};

use super::{PLAY, PROSE, folder, load};

fn start(folder: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwise"));
    command.env("HEADWISE_KERNELS", "tuned");
    command.args(["chat", "--model", folder.to_str().unwrap()]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Exit code, stdout and stderr of a conversation with these lines.
fn talk(folder: &Path, args: &[&str], lines: &str) -> (i32, String, String) {
    let mut child = start(folder, args);
    // A command that refuses its model does not read.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn lines_are_answered_as_the_library_answers_them() {
    let (model, template) = load("command");
    let folder = folder("command", PLAY);
    let greedy = Generate::new().greedy().max_new(12);
    let mut chat = Chat::new(&model, template(), None).unwrap();
    let system = [ChatMessage::new("system", "Speak of kings.")];
    let (mut text, mut remarks) = (String::new(), String::new());
    let mut say = |chat: &mut Chat, line: &str| {
        let reply = block_on(chat.reply(line, &greedy, |_| ControlFlow::Continue(()))).unwrap();
        text += &format!("{}\n", reply.text);
        let (kept, read) = (reply.kept_tokens, reply.prompt_tokens - reply.kept_tokens);
        remarks += &format!("({read} tokens read, {kept} kept, 12 written)\n");
    };
    chat.set_messages(system.clone());
    say(&mut chat, "Who art thou?");
    say(&mut chat, "And I?");
    chat.set_messages(system);
    say(&mut chat, "And he?");

    let args = ["--greedy", "--max-new", "12", "--system", "Speak of kings."];
    let lines = "Who art thou?\n\nAnd I?\r\n/reset\nAnd he?\n/quit\nnever read\n";
    assert_eq!(talk(&folder, &args, lines), (0, text.clone(), remarks));
    // The end of stdin ends it too; nothing is said of it when quiet.
    let quiet = [&args[..], &["-q"]].concat();
    let (code, found, error) = talk(&folder, &quiet, "Who art thou?\nAnd I?");
    assert!(text.starts_with(&found) && found.len() > 20);
    assert_eq!((code, error.as_str()), (0, ""));
}

#[test]
fn a_line_from_a_pipe_that_cannot_be_a_message_is_said_and_the_next_one_answered() {
    let folder = folder("wrong-lines", PLAY);
    let args = ["--greedy", "--max-new", "12"];
    let (_, expected, remarks) = talk(&folder, &args, "Who art thou?\nAnd I?\n");
    let long = "word ".repeat(300);
    let lines = [
        b"Who art thou?\n",
        long.as_bytes(),
        b"\n",
        &vec![b'a'; (1 << 20) + 5],
        b"\n",
        b"\xff\n",
        b"And I?\n",
    ]
    .concat();
    let mut child = start(&folder, &args);
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || stdin.write_all(&lines));
    let output = child.wait_with_output().unwrap();
    // Between the two answers three errors, and these as if nothing had been between.
    assert_eq!((output.status.code(), String::from_utf8(output.stdout).unwrap()), (Some(1), expected));
    let said = String::from_utf8(output.stderr).unwrap();
    let (errors, others): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with("error: "));
    assert_eq!(others, remarks.lines().collect::<Vec<_>>());
    let expected =
        ["conversation: found ", "line of stdin: found more than 1 MiB", "line of stdin: found bytes"];
    assert_eq!(errors.len(), 3, "{said}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.contains(expected), "no {expected:?} in {error}");
    }
}

#[test]
fn answers_end_and_are_chosen_as_the_options_say() {
    let (model, template) = load("options");
    let options =
        Generate::new().seed(3).max_new(12).repetition_penalty(1.5).logit_bias([(0, -5.0)]).stop(["e"]);
    let mut chat = Chat::new(&model, template(), None).unwrap();
    let reply = block_on(chat.reply("Who art thou?", &options, |_| ControlFlow::Continue(()))).unwrap();
    let args =
        ["--seed=3", "--max-new=12", "--repetition-penalty=1.5", "--logit-bias=0=-5", "--stop=e", "-q"];
    let found = talk(&folder("options", PLAY), &args, "Who art thou?\n");
    assert_eq!(found, (0, format!("{}\n", reply.text), String::new()));
}

#[test]
fn a_model_without_a_template_is_refused() {
    let (code, text, error) = talk(Path::new(PROSE), &[], "Hello\n");
    assert_eq!((code, text.as_str(), error.lines().count()), (1, "", 1));
    for part in ["models/prose/tokenizer_config.json", "chat_template", "it continues texts"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let (code, _, error) = talk(&folder("small", PLAY), &["--context", "12"], &"word ".repeat(20));
    assert!(code == 1 && error.starts_with("error: conversation: found "), "{error}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_answer_and_not_the_conversation() {
    let folder = folder("interrupt", PLAY);
    let mut child = start(&folder, &["--greedy", "--max-new", "150"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Tell me all.\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.unwrap().success());
    // Answered before the next line is given: what is ended is the first answer.
    let mut remarks = BufReader::new(child.stderr.take().unwrap()).lines();
    let written = |remark: String| -> usize {
        let words: Vec<&str> = remark.split(' ').collect();
        words[words.len() - 2].parse().unwrap_or_else(|_| panic!("{remark}"))
    };
    assert!(written(remarks.next().unwrap().unwrap()) < 150);
    stdin.write_all(b"Go on.\n").unwrap();
    drop(stdin);
    assert!(written(remarks.next().unwrap().unwrap()) > 50);
    assert!(remarks.next().is_none());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

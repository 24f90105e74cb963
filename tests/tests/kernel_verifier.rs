//! What the kernel's verifier has to do for the program, in each of its forms. Alone in its file: see [`Cost::of`].

use tfo_common::{parse::LinkLayer, verdict::Mode};
use tfo_tests::verifier::Cost;
use tfo_userspace::dataplane::{LoadOptions, Object};

/// `cargo xtask kernels` reads what this prints, and compares it with what was usual.
#[test]
fn the_cost_is_told() {
    for (link, mode) in
        LinkLayer::ALL.iter().flat_map(|link| Mode::ALL.iter().map(move |mode| (*link, *mode)))
    {
        let options = LoadOptions::new(link, mode);
        let cost = Cost::of(&options);
        println!("verified: {mode} {link} {} instructions {} stack", cost.instructions, cost.stack);

        // The kernel tells the same of a program that has been loaded (since Linux 5.16).
        let mut object = Object::load(&options, None).expect("what the verifier takes can be loaded");
        let info =
            object.program().and_then(|program| Ok(program.info()?)).expect("a loaded program is known");
        if let Some(instructions) = info.verified_instruction_count() {
            assert_eq!(cost.instructions, instructions, "{mode} {link}");
        }
    }
}

//! Cost of the program to the kernel's verifier, in each form of the program. It is alone in its file: see
//! [`Cost::of`].

use tfo_common::{parse::LinkLayer, verdict::Mode};
use tfo_tests::verifier::Cost;
use tfo_userspace::dataplane::{LoadOptions, Object};

/// Prints the costs, which `cargo xtask kernels` compares with the budget.
#[test]
fn verification_costs() {
    for (link, mode) in
        LinkLayer::ALL.iter().flat_map(|link| Mode::ALL.iter().map(move |mode| (*link, *mode)))
    {
        // With all that a service may ask of mode `shield`, except for answers.
        let options = LoadOptions { compares_data: true, ..LoadOptions::new(link, mode) };
        let cost = Cost::of(&options);
        println!("verified: {mode} {link} {} instructions {} stack", cost.instructions, cost.stack);

        // Since Linux 5.16, the kernel reports the same for a loaded program.
        let mut object = Object::load(&options, None).expect("what the verifier takes can be loaded");
        let info =
            object.program().and_then(|program| Ok(program.info()?)).expect("a loaded program is known");
        if let Some(instructions) = info.verified_instruction_count() {
            assert_eq!(cost.instructions, instructions, "{mode} {link}");
        }
    }
}

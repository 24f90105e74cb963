//! Tier 2: cost of the program to the kernel's verifier, in each form of the program. It is a test program of its own: see
//! [`Cost::of`].

use tfo_common::{parse::LinkLayer, verdict::Mode};
use tfo_tests::verifier::Cost;
use tfo_userspace::{
    dataplane::{LoadOptions, Object},
    kernel::listeners::makes_cookies,
};

/// Prints the costs, which `cargo xtask kernels` compares with the budget.
#[test]
fn verification_costs() {
    // With all that a service may ask of mode `shield`, except for answers.
    let of = |link, mode| LoadOptions { compares_data: true, ..LoadOptions::new(link, mode) };
    let modes = |link: &LinkLayer| {
        let link = *link;
        Mode::ALL.iter().map(move |mode| (format!("{mode} {link}"), of(link, *mode)))
    };
    let mut forms: Vec<_> = LinkLayer::ALL.iter().flat_map(modes).collect();
    for link in LinkLayer::ALL {
        let options = LoadOptions { portable: true, ..of(*link, Mode::Shield) };
        forms.push((format!("portable {link}"), options));
    }
    if makes_cookies().expect("the kernel's type information") {
        let options = LoadOptions { answers: true, ..of(LinkLayer::Ethernet, Mode::Shield) };
        forms.push((format!("answer {}", LinkLayer::Ethernet), options));
    }
    for (form, options) in forms {
        let cost = Cost::of(&options);
        println!("verified: {form} {} instructions {} stack", cost.instructions, cost.stack);

        // Since Linux 5.16, the kernel reports the same for a loaded program.
        let mut object = Object::load(&options, None).expect("what the verifier takes can be loaded");
        let info =
            object.program().and_then(|program| Ok(program.info()?)).expect("a loaded program is known");
        if let Some(instructions) = info.verified_instruction_count() {
            assert_eq!(cost.instructions, instructions, "{form}");
        }
    }
}

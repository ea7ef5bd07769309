//! [`Beta`]: the beta distribution, which the load of a resource as a share of what there is may have.
//!
//! The distribution function is the regularised incomplete beta function, by its continued fraction (DLMF 8.17.22, Lentz' method) and Lanczos' approximation of
//! the gamma function. Upstream: pkg/trimaran/lowriskovercommitment/beta.go, on gonum.

/// A beta distribution; both parameters are above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beta {
    /// The first.
    pub alpha: f64,
    /// The second.
    pub beta: f64,
}

impl Beta {
    /// The one with that mean and variance; `None` where there is none.
    pub fn with_moments(mean: f64, variance: f64) -> Option<Beta> {
        let largest = mean * (1.0 - mean);
        if !(0.0..=1.0).contains(&mean) || variance < 0.0 || variance >= largest {
            return None;
        }
        let size = (largest / variance - 1.0).max(f64::MIN_POSITIVE);
        let (alpha, beta) = (mean * size, (1.0 - mean) * size);
        (alpha > 0.0 && beta > 0.0).then_some(Beta { alpha, beta })
    }

    /// How probable a value of at most `x` is.
    pub fn probability_up_to(&self, x: f64) -> f64 {
        if x <= 0.0 {
            return 0.0;
        }
        if x >= 1.0 {
            return 1.0;
        }
        let probability = regularized_incomplete(x, self.alpha, self.beta);
        match probability.is_finite() {
            true => probability.clamp(0.0, 1.0),
            false => 0.0,
        }
    }
}

/// How probable a share of at most `threshold` is where its mean is `mu` and its deviation `sigma`, and the distribution that says so, if it takes one.
/// Upstream: `ComputeProbability`.
pub fn probability(mu: f64, sigma: f64, threshold: f64) -> (f64, Option<Beta>) {
    if mu == 0.0 || (sigma == 0.0 && mu <= threshold) {
        return (1.0, None);
    }
    if sigma == 0.0 {
        return (0.0, None);
    }
    match Beta::with_moments(mu, sigma * sigma) {
        Some(beta) => (beta.probability_up_to(threshold), Some(beta)),
        None => (0.0, None),
    }
}

/// I_x(a, b) for x within (0, 1).
fn regularized_incomplete(x: f64, a: f64, b: f64) -> f64 {
    // The fraction converges fast below the mean; above it the other side is computed.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - regularized_incomplete_low(1.0 - x, b, a);
    }
    regularized_incomplete_low(x, a, b)
}

fn regularized_incomplete_low(x: f64, a: f64, b: f64) -> f64 {
    let ln_front =
        a * x.ln() + b * (-x).ln_1p() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) - a.ln();
    ln_front.exp() / continued_fraction(x, a, b)
}

/// The denominator of DLMF 8.17.22, by Lentz' method.
fn continued_fraction(x: f64, a: f64, b: f64) -> f64 {
    /// More terms would change nothing that a double can tell.
    const TERMS: usize = 500;
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut result, mut c, mut d) = (1.0, 1.0, 0.0);
    for i in 1..=TERMS {
        let m = (i / 2) as f64;
        let numerator = if i % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        d = 1.0 / away(1.0 + numerator * d);
        c = away(1.0 + numerator / c);
        let step = c * d;
        result *= step;
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    result
}

/// ln Γ(x) for x > 0 (Lanczos, g = 7, n = 9).
fn ln_gamma(x: f64) -> f64 {
    #[allow(clippy::excessive_precision)]
    const COEFFICIENTS: [f64; 9] = [
        0.999_999_999_999_809_93,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_13,
        -176.615_029_162_140_59,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_571_6e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // The reflection: Γ(x) Γ(1 - x) = π / sin(πx).
        let pi = std::f64::consts::PI;
        return (pi / (pi * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let base = x + 7.5;
    let series = COEFFICIENTS[1..].iter().enumerate();
    let sum: f64 = series.map(|(i, c)| c / (x + i as f64 + 1.0)).sum();
    (2.0 * std::f64::consts::PI).ln() / 2.0 + (x + 0.5) * base.ln() - base
        + (COEFFICIENTS[0] + sum).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn known_values() {
        // By the closed forms: binomial sums for whole parameters, the arcsine law for halves.
        for (x, alpha, beta, expect) in [
            (0.3, 1.0, 1.0, 0.3),
            (0.5, 2.0, 3.0, 0.6875),
            (0.5, 3.0, 2.0, 0.3125),
            (0.2, 1.0, 5.0, 1.0 - 0.8f64.powi(5)),
            (0.9, 4.0, 1.0, 0.9f64.powi(4)),
            (0.25, 0.5, 0.5, 1.0 / 3.0),
            (0.0, 2.0, 2.0, 0.0),
            (1.0, 2.0, 2.0, 1.0),
        ] {
            let got = Beta { alpha, beta }.probability_up_to(x);
            assert!(
                near(got, expect),
                "I_{x}({alpha}, {beta}) = {got}, not {expect}"
            );
        }
        // Large parameters are a normal distribution: half lies below the mean.
        let narrow = Beta {
            alpha: 5000.0,
            beta: 5000.0,
        };
        assert!(near(narrow.probability_up_to(0.5), 0.5));
        assert!(narrow.probability_up_to(0.49) < 0.03);
    }

    #[test]
    fn moments_make_a_distribution() {
        let beta = Beta::with_moments(0.4, 0.04).expect("there is one");
        assert!(near(beta.alpha, 2.0) && near(beta.beta, 3.0), "{beta:?}");
        for (mean, variance) in [
            (0.5, 0.25),
            (0.5, 0.3),
            (-0.1, 0.1),
            (1.1, 0.1),
            (0.5, -0.1),
            (0.0, 0.0),
        ] {
            assert_eq!(
                Beta::with_moments(mean, variance),
                None,
                "{mean} {variance}"
            );
        }
    }

    #[test]
    fn without_deviation_it_is_certain() {
        assert_eq!(probability(0.0, 0.3, 0.1).0, 1.0);
        assert_eq!(probability(0.5, 0.0, 0.5).0, 1.0);
        assert_eq!(probability(0.5, 0.0, 0.4).0, 0.0);
        assert!(near(probability(0.4, 0.2, 0.5).0, 0.6875));
    }
}

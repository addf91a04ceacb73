package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/e2e/kafkatest"
)

func TestBenchmarkRunsOnTheSandbox(t *testing.T) { runBenchmark(t) }

func TestKafkaBenchmarkRuns(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		runBenchmark(t, "-b", strings.Join(b.Brokers(), ","))
	})
}

// runBenchmark runs the benchmark, which itself checks the output of its loops. With so few
// events, the figures are meaningless, so only their presence is checked.
func runBenchmark(t *testing.T, args ...string) {
	page := filepath.Join(t.TempDir(), "benchmarks.md")
	args = append([]string{"-bin", bin, "-events", "4000", "-only", "a0,a,b,b2,c,da,db", "-out", page}, args...)
	out, err := exec.Command(filepath.Join(bin, "bench"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("bench: %v\n%s", err, out)
	}
	for _, name := range []string{"ratio_b_over_a", "ratio_lookup_over_a", "ratio_c_over_b"} {
		if !strings.Contains(string(out), "\n"+name+"=") {
			t.Errorf("%s is missing:\n%s", name, out)
		}
	}
}

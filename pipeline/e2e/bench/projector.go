package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// A probe is a benchmark of the projector's parts, and the numbers that it gives.
// The benchmarks are those of package app, which see what no other program can.
type probe struct {
	bench, times string // as go test takes them
	size         int    // MILLRACE_BENCH_SIZE, of a whole run; 0 if it has none
	numbers      []number
}

// A number is one that a benchmark reports, in a unit, and what it is to be.
type number struct {
	name   string
	of     string // the benchmark's full name
	unit   string
	factor float64 // from that unit to this number's
	goal   float64
	least  bool // the goal is the least; else the most
	about  string
}

var probes = []probe{
	{"BenchmarkProject", "2000000x", 0, []number{
		{"fold_events_per_cpu_s", "BenchmarkProject/history=false/users=10000", "events/cpu-s", 1, 500_000, true, "states only, 10,000 aggregates"},
		{"fold_1m_events_per_cpu_s", "BenchmarkProject/history=false/users=1000000", "events/cpu-s", 1, 500_000, true, "states only, 1,000,000 aggregates"},
		{"fold_history_events_per_cpu_s", "BenchmarkProject/history=true/users=10000", "events/cpu-s", 1, 200_000, true, "with history, 10,000 aggregates"},
		{"fold_history_1m_events_per_cpu_s", "BenchmarkProject/history=true/users=1000000", "events/cpu-s", 1, 200_000, true, "with history, 1,000,000 aggregates"},
	}},
	{"BenchmarkRestart$", "1x", 10_000_000, []number{
		{"restart_s", "BenchmarkRestart", "restart-s", 1, 2, false, "from kill -9 to ready, without the tail, 10,000,000 events behind it"},
		{"memory_mib", "BenchmarkRestart", "MiB", 1, 2048, false, "the most that folding 10,000,000 aggregates with history took"},
	}},
	{"BenchmarkRestoreSnapshots", "1x", 1_000_000, []number{
		{"restore_aggregates_per_s", "BenchmarkRestoreSnapshots", "aggregates/s", 1, 300_000, true, "snapshots into an empty store, one partition, 1,000,000 of them"},
	}},
	{"BenchmarkAsk/version", "300x", 0, []number{
		{"as_of_version_ms", "BenchmarkAsk/version", "ns/op", 1e-6, 20, false, "a state as of a version, chosen evenly, in a history of 100,000 events"},
	}},
	{"BenchmarkReadsWhileFolding", "10000x", 0, []number{
		{"read_p99_ms", "BenchmarkReadsWhileFolding/fold=20000", "p99-ms", 1, 5, false, "answers over HTTP at 2,000 requests/s, while 20,000 events/s are folded"},
		{"read_p99_ms_at_full_speed", "BenchmarkReadsWhileFolding/fold=max", "p99-ms", 1, 5, false, "the same while events are folded as fast as they can be, on the same cores"},
	}},
}

// projectorMain runs the probes.
func projectorMain(args []string) error {
	var test, out string
	var size int
	flags := flag.NewFlagSet("bench projector", flag.ContinueOnError)
	flags.StringVar(&test, "test", "build/app.bench", "the tests of package app, as a `program`")
	flags.IntVar(&size, "size", 0, "how many events or aggregates are behind where it matters, at most; 0: as many as the goals say")
	flags.StringVar(&out, "out", "", "put the results into a `file`, such as docs/benchmarks.md")
	if err := flags.Parse(args); err != nil {
		return err
	}
	measured := map[string]float64{} // by benchmark and unit
	for _, p := range probes {
		if size > 0 {
			p.size = min(p.size, size)
		}
		say("%s", strings.TrimSuffix(p.bench, "$"))
		cmd := exec.Command(test, "-test.run=^$", "-test.bench=^"+p.bench, "-test.benchtime="+p.times, "-test.timeout=30m")
		if p.size > 0 {
			cmd.Env = append(os.Environ(), "MILLRACE_BENCH_SIZE="+strconv.Itoa(p.size))
		}
		said, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", p.bench, err, said)
		}
		readBenchmarks(measured, said)
	}
	var page bytes.Buffer
	scale := ""
	if size > 0 {
		scale = fmt.Sprintf(", with at most %d events or aggregates where a number speaks of more", size)
	}
	fmt.Fprintf(&page, "Measured on %s: %s%s. Per CPU second is by what the process used of all cores, compaction and garbage collection included.\n\n", time.Now().UTC().Format(time.DateOnly), machine(), scale)
	page.WriteString("| number | value | goal | | what |\n| --- | ---: | --- | --- | --- |\n")
	var lines strings.Builder
	for _, p := range probes {
		for _, n := range p.numbers {
			v, ok := measured[n.of+" "+n.unit]
			if !ok {
				return fmt.Errorf("%s did not report %s", n.of, n.unit)
			}
			v *= n.factor
			goal, met := fmt.Sprintf("at most %.0f", n.goal), v <= n.goal
			if n.least {
				goal, met = fmt.Sprintf("at least %.0f", n.goal), v >= n.goal
			}
			said := "met"
			if !met {
				said = "missed"
				fmt.Fprintf(os.Stdout, "missed: %s (%s)\n", n.name, goal)
			}
			fmt.Fprintf(&page, "| `%s` | %s | %s | %s | %s |\n", n.name, short(v), goal, said, n.about)
			fmt.Fprintf(&lines, "%s=%s\n", n.name, short(v))
		}
	}
	if out != "" {
		if err := writeSection(out, "projector", page.String()); err != nil {
			return err
		}
	}
	_, err := os.Stdout.WriteString(lines.String())
	return err
}

// short writes a number in as many digits as mean something.
func short(v float64) string {
	if v >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// readBenchmarks reads what go test prints of benchmarks: a name with the number of
// cores behind it, how often it ran, and pairs of a value and its unit.
func readBenchmarks(into map[string]float64, said []byte) {
	for line := range strings.Lines(string(said)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := f[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i]
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				into[name+" "+f[i+1]] = v
			}
		}
	}
}

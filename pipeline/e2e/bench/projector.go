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

// A probe is a Go benchmark of package app, with the numbers it reports. The benchmarks
// are in that package because they use its unexported parts.
type probe struct {
	bench, times string // for go test -bench and -benchtime
	size         int    // MILLRACE_BENCH_SIZE of a full run; 0 if the benchmark has no size
	numbers      []number
}

// A number is a reported value with its goal.
type number struct {
	name   string
	of     string  // full name of the benchmark
	unit   string  // unit in the benchmark's output
	factor float64 // converts from unit to the number's own unit
	goal   float64
	least  bool // the goal is a minimum; otherwise a maximum
	about  string
}

// probes are the benchmarks that `bench projector` runs.
var probes = []probe{
	{"BenchmarkProject", "2000000x", 0, []number{
		{"fold_events_per_cpu_s", "BenchmarkProject/history=false/users=10000", "events/cpu-s", 1, 500_000, true, "states only, 10,000 aggregates"},
		{"fold_1m_events_per_cpu_s", "BenchmarkProject/history=false/users=1000000", "events/cpu-s", 1, 500_000, true, "states only, 1,000,000 aggregates"},
		{"fold_history_events_per_cpu_s", "BenchmarkProject/history=true/users=10000", "events/cpu-s", 1, 200_000, true, "with history, 10,000 aggregates"},
		{"fold_history_1m_events_per_cpu_s", "BenchmarkProject/history=true/users=1000000", "events/cpu-s", 1, 200_000, true, "with history, 1,000,000 aggregates"},
	}},
	{"BenchmarkRestart$", "1x", 10_000_000, []number{
		{"restart_s", "BenchmarkRestart", "restart-s", 1, 2, false, "from kill -9 to ready, without reading the log's tail, after 10,000,000 events"},
		{"memory_mib", "BenchmarkRestart", "MiB", 1, 2048, false, "peak while folding 10,000,000 aggregates with history"},
	}},
	{"BenchmarkRestoreSnapshots", "1x", 1_000_000, []number{
		{"restore_aggregates_per_s", "BenchmarkRestoreSnapshots", "aggregates/s", 1, 300_000, true, "1,000,000 snapshots of one partition into an empty store"},
	}},
	{"BenchmarkAsk/version", "300x", 0, []number{
		{"as_of_version_ms", "BenchmarkAsk/version", "ns/op", 1e-6, 20, false, "state at a uniformly chosen version, in a history of 100,000 events"},
	}},
	{"BenchmarkReadsWhileFolding", "10000x", 0, []number{
		{"read_p99_ms", "BenchmarkReadsWhileFolding/fold=20000", "p99-ms", 1, 5, false, "HTTP answers at 2,000 requests/s, while 20,000 events/s are folded"},
		{"read_p99_ms_at_full_speed", "BenchmarkReadsWhileFolding/fold=max", "p99-ms", 1, 5, false, "the same while events are folded at full speed on the same cores"},
	}},
}

// projectorMain runs the probes, writes the results to a file, and prints them. A missed
// goal is reported, but is not an error.
func projectorMain(args []string) error {
	var test, out string
	var size int
	flags := flag.NewFlagSet("bench projector", flag.ContinueOnError)
	flags.StringVar(&test, "test", "build/app.bench", "test `program` of package app, built with go test -c")
	flags.IntVar(&size, "size", 0, "maximum number of events or aggregates in benchmarks with a size; 0 means the sizes of the goals")
	flags.StringVar(&out, "out", "", "write the results to their section of this `file`, such as docs/benchmarks.md")
	if err := flags.Parse(args); err != nil {
		return err
	}
	measured := map[string]float64{} // by benchmark and unit
	for _, p := range probes {
		if size > 0 {
			p.size = min(p.size, size)
		}
		logf("%s", strings.TrimSuffix(p.bench, "$"))
		cmd := exec.Command(test, "-test.run=^$", "-test.bench=^"+p.bench, "-test.benchtime="+p.times, "-test.timeout=30m")
		if p.size > 0 {
			cmd.Env = append(os.Environ(), "MILLRACE_BENCH_SIZE="+strconv.Itoa(p.size))
		}
		text, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", p.bench, err, text)
		}
		readBenchmarks(measured, text)
	}
	var page bytes.Buffer
	scale := ""
	if size > 0 {
		scale = fmt.Sprintf(", with at most %d events or aggregates where a description names more", size)
	}
	fmt.Fprintf(&page, "Measured on %s: %s%s. CPU seconds count all cores of the process, including compaction and garbage collection.\n\n", time.Now().UTC().Format(time.DateOnly), machine(), scale)
	page.WriteString("| number | value | goal | | description |\n| --- | ---: | --- | --- | --- |\n")
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
			result := "met"
			if !met {
				result = "missed"
				fmt.Fprintf(os.Stdout, "missed: %s (%s)\n", n.name, goal)
			}
			fmt.Fprintf(&page, "| `%s` | %s | %s | %s | %s |\n", n.name, short(v), goal, result, n.about)
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

// short formats a number with its significant digits.
func short(v float64) string {
	if v >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// readBenchmarks parses the benchmark lines of go test's output: a name followed by -
// and the number of cores, the number of iterations, and pairs of value and unit. It adds
// the values to into, with the key "NAME UNIT".
func readBenchmarks(into map[string]float64, text []byte) {
	for line := range strings.Lines(string(text)) {
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

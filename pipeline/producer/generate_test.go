package producer

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/producer/shop"
)

func generate(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	env := &cli.Env{Stdout: &out, Stderr: &err, Now: func() time.Time { return harness.Now }}
	code = env.Main(append([]string{"generate"}, args...), Command)
	return code, out.String(), err.String()
}

func TestSeedDeterminesTheEvents(t *testing.T) {
	code, first, stderr := generate(t, "-n", "1500", "--seed", "7", "--out", "-")
	if code != cli.ExitOK || stderr != "wrote 1500 events\n" || strings.Count(first, "\n") != 1500 {
		t.Fatalf("exit code %d, %d lines, %s", code, strings.Count(first, "\n"), stderr)
	}
	if _, again, _ := generate(t, "-n", "1500", "--seed", "7", "--out", "-"); again != first {
		t.Error("the same seed gives other events")
	}
	if _, other, _ := generate(t, "-n", "1500", "--seed", "8", "--out", "-"); other == first {
		t.Error("another seed gives the same events")
	}
	var j codec.JSON
	for line := range strings.Lines(first) {
		if err := j.Parse([]byte(line)); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

func TestGenerateRefusesBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"-n -1":              "--events: -1 is negative",
		"--users -1":         "--users: -1 is negative",
		"--rate -1":          "--rate: -1 is not a number of events per second",
		"--start 1969-01-01": `--start: "1969-01-01" is neither now nor a time since 1970`,
		"--out - --json":     "--json cannot be combined with --out",
		"--timeout 0s":       "--timeout: 0s is not a positive duration",
		"events.jsonl":       `unexpected argument "events.jsonl"`,
	} {
		if code, _, stderr := generate(t, strings.Fields(args)...); code != cli.ExitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d: %s", args, code, stderr)
		}
	}
	if code, out, _ := generate(t, "-n", "1", "--start", "now", "--out", "-"); code != cli.ExitOK || !strings.Contains(out, `"timestamp":"2026-03-04T05:06:0`) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestGeneratorKeepsItsRate(t *testing.T) {
	now := harness.Now
	lines := newStoryLines(shop.Story{Seed: 1, Events: 100, Start: harness.Now}, 10, func() time.Time { return now })
	defer lines.close()
	for _, step := range []struct {
		wait time.Duration
		want int // lines
	}{{0, 1}, {100 * time.Millisecond, 1}, {time.Second, 10}, {2500 * time.Millisecond, 25}, {time.Hour, 63}} {
		now = now.Add(step.wait)
		b, err := lines.next(t.Context())
		if err != nil || len(b.ends) != step.want {
			t.Fatalf("%d lines after %v more, %v; want %d", len(b.ends), step.wait, err, step.want)
		}
	}
	if _, err := lines.next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestWaitForTheNextEventCanBeInterrupted(t *testing.T) {
	lines := newStoryLines(shop.Story{Seed: 1, Start: harness.Now}, 1e-3, func() time.Time { return harness.Now })
	defer lines.close()
	if _, err := lines.next(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := lines.next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// The kernel may report a full disk only when the file is closed.
func TestGenerateReportsAFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Log("no /dev/full on this system; writing to a directory instead")
		if code, _, _ := generate(t, "--out", t.TempDir(), "--events", "1"); code == cli.ExitOK {
			t.Error("writing to a directory succeeded")
		}
		return
	}
	if code, _, errs := generate(t, "--out", "/dev/full", "--events", "10"); code != cli.ExitFailure || !strings.Contains(errs, "no space left") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

package cli_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
)

// line is a line of a JSON log.
type line struct {
	Level, Msg, Topic, Stage, Err string
	N                             int
	Left                          int `json:"left_out"`
}

// jsonLogger returns a logger as programs have it, and its lines so far.
func jsonLogger(t *testing.T) (*slog.Logger, func() []line) {
	t.Helper()
	var out harness.Buffer
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	logs := (&cli.Env{Stderr: &out}).LogFlags(flags)
	if err := flags.Parse([]string{"--log-format", "json", "--log-level", "debug"}); err != nil {
		t.Fatal(err)
	}
	log, err := logs.Logger()
	if err != nil {
		t.Fatal(err)
	}
	return log, func() (lines []line) {
		for text := range strings.Lines(out.String()) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Errorf("%s: %v", text, err)
			}
			lines = append(lines, l)
		}
		return lines
	}
}

func TestAFloodOfEqualLinesIsTenLinesAndACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := jsonLogger(t)
		log = log.With("topic", "orders")
		for n := range 4420 {
			log.Error("misplaced", "n", n, "stage", "s", "err", fmt.Sprint("offset ", n))
		}
		if got := lines(); len(got) != 10 || got[0].N != 0 || got[9].N != 9 {
			t.Fatalf("%d lines: %v", len(got), got)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		got := lines()
		if want := (line{"ERROR", "misplaced", "orders", "s", "offset 4419", 4419, 4409}); len(got) != 11 || got[10] != want {
			t.Fatalf("%d lines; the last one is %v, want %v", len(got), got[len(got)-1], want)
		}
		log.Error("misplaced", "n", 4420, "stage", "s")
		<-time.After(time.Hour)
		if got := lines(); len(got) != 12 || got[11].N != 4420 || got[11].Left != 0 {
			t.Errorf("the next interval: %v", got[11:])
		}
	})
}

func TestLinesAreEqualByLevelTextAndPlace(t *testing.T) {
	log, lines := jsonLogger(t)
	for range 5 {
		for _, l := range []func(string, ...any){log.Info, log.Warn, log.Error} {
			for _, text := range []string{"a", "b"} {
				for _, topic := range []string{"x", "y"} {
					l(text, "topic", topic)
					l(text, "topic", topic, "stage", "s")
				}
			}
		}
	}
	if got := len(lines()); got != 5*3*2*2*2 {
		t.Errorf("%d lines", got)
	}
	for range 20 {
		log.Debug("single")
	}
	if got := len(lines()); got != 5*3*2*2*2+20 {
		t.Errorf("%d lines after 20 of the debug level", got)
	}
}

// Each line is printed or counted when the program ends, at any pace of the lines.
func TestEveryLineIsPrintedOrCounted(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		bursts := rapid.SliceOf(rapid.Custom(func(rt *rapid.T) [3]int {
			return [3]int{rapid.IntRange(0, 3).Draw(rt, "text"), rapid.IntRange(1, 40).Draw(rt, "lines"), rapid.SampledFrom([]int{0, 0, 1, 59, 60, 61}).Draw(rt, "seconds")}
		})).Draw(rt, "bursts")
		synctest.Test(t, func(t *testing.T) {
			log, lines := jsonLogger(t)
			want, got, printed := map[string]int{}, map[string]int{}, map[string]int{}
			for _, b := range bursts {
				for range b[1] {
					log.Warn(fmt.Sprint("text ", b[0]))
				}
				want[fmt.Sprint("text ", b[0])] += b[1]
				<-time.After(time.Duration(b[2]) * time.Second)
			}
			cli.FlushLog(log)
			for _, l := range lines() {
				got[l.Msg] += 1 + l.Left
				printed[l.Msg]++
			}
			for text, n := range want {
				if got[text] != n {
					rt.Errorf("%s: %d lines are printed or counted, want %d", text, got[text], n)
				}
				if most := 11 * (len(bursts) + 1); printed[text] > most {
					rt.Errorf("%s: %d lines are printed", text, printed[text])
				}
			}
		})
	})
}

func TestTheCountOfAFloodComesOutAtTheEndOfAProgram(t *testing.T) {
	var out harness.Buffer
	e := &cli.Env{Stdout: &out, Stderr: &out}
	code := e.Main([]string{"flood", "--log-format", "json"}, func(e *cli.Env) *cobra.Command {
		root := &cobra.Command{Use: "program"}
		cmd := &cobra.Command{Use: "flood"}
		logs := e.LogFlags(cmd.Flags())
		cmd.RunE = func(*cobra.Command, []string) error {
			log, err := logs.Logger()
			if err != nil {
				return err
			}
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					for range 25 {
						log.With("session", 1).Info("flood")
					}
				})
			}
			all.Wait()
			return nil
		}
		root.AddCommand(cmd)
		return root
	})
	if got := out.String(); code != cli.ExitOK || strings.Count(got, "flood") != 11 || !strings.Contains(got, `"left_out":89}`) {
		t.Errorf("exit code %d:\n%s", code, got)
	}
}

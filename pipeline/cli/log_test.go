package cli_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
)

func TestLogsHaveDurationsWithUnits(t *testing.T) {
	for format, want := range map[string][]string{
		"json": {`"wait":"100ms"`, `"group":{"took":"1.5s"}`, `"n":3`},
		"text": {`wait=100ms`, `group.took=1.5s`, `n=3`},
	} {
		var out bytes.Buffer
		e := &cli.Env{Stderr: &out}
		flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
		logs := e.LogFlags(flags)
		if err := flags.Parse([]string{"--log-format", format}); err != nil {
			t.Fatal(err)
		}
		log, err := logs.Logger()
		if err != nil {
			t.Fatal(err)
		}
		log.Info("retrying", "wait", 100*time.Millisecond, "n", 3, slog.Group("group", "took", 1500*time.Millisecond))
		for _, part := range want {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%s: %s has no %s", format, out.String(), part)
			}
		}
	}
}

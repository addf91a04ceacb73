package keyring

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/cli"
)

func TestKEKsComeFromAFileOrTheEnvironment(t *testing.T) {
	line := "a " + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" + "\n"
	file := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file, env string
		given     bool
		err       string
	}{
		"none":     {},
		"file":     {file: file, given: true},
		"env":      {env: line, given: true},
		"both":     {file: file, env: line, err: "give one"},
		"no file":  {file: file + "x", err: "no such file"},
		"bad file": {file: os.DevNull, err: os.DevNull + ": there is no key in it"},
		"bad env":  {env: "a b", err: "MILLRACE_KEK: line 1"},
	} {
		e := &cli.Env{LookupEnv: func(name string) (string, bool) { return c.env, name == EnvKEK && c.env != "" }}
		k, err := (&Flags{env: e, file: c.file}).Parse()
		if (k != nil) != c.given || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
		if err != nil && cli.ExitCode(err) != cli.ExitUsage {
			t.Errorf("%s: %v is not a usage error", name, err)
		}
	}
}

package reload_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/reload"
)

// A change of one of the files gives a new value. A change that cannot be used leaves the
// old value, is reported once, and ends with the next one that can be used, even if that
// is the first content again.
func TestAChangeThatCannotBeUsedLeavesTheValue(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	join := func(contents [][]byte) (string, error) {
		all := string(bytes.Join(contents, []byte("+")))
		if strings.Contains(all, "bad") {
			return "", errors.New("it is bad")
		}
		return all, nil
	}
	var log bytes.Buffer
	write(a, "1")
	if _, err := reload.Open(slog.New(slog.DiscardHandler), join, a, b); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the error without a file is %v", err)
	}
	write(b, "2")
	f, err := reload.Open(slog.New(slog.NewTextHandler(&log, nil)), join, a, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ what, a, b, want, fault string }{
		{"nothing changed", "1", "2", "1+2", ""},
		{"one changed", "1", "3", "1+3", ""},
		{"one is bad", "bad", "3", "1+3", "it is bad"},
		{"it is bad still", "bad", "3", "1+3", "it is bad"},
		{"it is as before", "1", "3", "1+3", ""},
		{"one is empty", "", "3", "+3", ""},
		{"a byte moved", "+", "3", "++3", ""},
	} {
		write(a, step.a)
		write(b, step.b)
		f.Check()
		if got := f.Get(); got != step.want {
			t.Errorf("%s: the value is %q, want %q", step.what, got, step.want)
		}
		if err := f.Err(); (err == nil) != (step.fault == "") || err != nil && !strings.Contains(err.Error(), step.fault) {
			t.Errorf("%s: the error is %v, want %q", step.what, err, step.fault)
		}
	}
	if err := os.Remove(b); err != nil {
		t.Fatal(err)
	}
	f.Check()
	if err := f.Err(); !errors.Is(err, os.ErrNotExist) || f.Get() != "++3" {
		t.Errorf("after a file was removed, the value is %q, the error is %v", f.Get(), err)
	}
	if n := strings.Count(log.String(), "it is bad"); n != 1 {
		t.Errorf("the fault was logged %d times, want once:\n%s", n, &log)
	}
}

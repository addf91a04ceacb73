package programs_test

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"millrace/pipeline/harness"
)

// checkPrivate reports the files and directories below dir that other users have rights to,
// without those in known. It returns the number of the others.
func checkPrivate(t testing.TB, dir string, known map[string]bool) (n int) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || known[path] || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", path, info.Mode())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	return n
}

// below returns the paths of a directory and of everything in it.
func below(t testing.TB, dir string) map[string]bool {
	t.Helper()
	paths := map[string]bool{}
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths[path] = true
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return paths
}

// expectPrivate checks at the end of a script that only their owner can read the files that
// the programs have created. A script may make empty directories.
func expectPrivate(t *testing.T, env *testscript.Env) {
	known := below(t, env.WorkDir)
	env.Defer(func() {
		for path := range below(t, env.WorkDir) {
			if names, err := os.ReadDir(path); err == nil && len(names) == 0 {
				known[path] = true
			}
		}
		checkPrivate(t, env.WorkDir, known)
	})
}

// widen gives all users all rights to everything below a directory.
func widen(t *testing.T, dir string) {
	t.Helper()
	for path := range below(t, dir) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
}

// The programs run as processes, because the mask of new files belongs to a process. They
// find the directories and the output files of an earlier release, which others could read.
func TestOnlyTheirOwnerCanReadTheFilesOfAllPrograms(t *testing.T) {
	t.Parallel()
	bin, dir := programDir(t), t.TempDir()
	topology, err := filepath.Abs(harness.ShopTopology())
	if err != nil {
		t.Fatal(err)
	}
	command := func(ctx context.Context, program string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, program), args...)
		cmd.Dir, cmd.WaitDelay = dir, 0
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		return cmd
	}
	start := func(program string, args ...string) (output *harness.Buffer, stop func()) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		cmd, out := command(ctx, program, args...), &harness.Buffer{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return out, func() {
			cancel()
			_ = cmd.Wait() // the context's error
		}
	}
	for range 2 {
		box, stopBox := start("sandbox", "run", "--kafka-listen", "127.0.0.1:0", "--registry-listen", "127.0.0.1:0", "--data-dir", "data/sandbox")
		addresses := regexp.MustCompile(`Kafka +(\S+)\n +schema registry +(\S+)\n`)
		var found []string
		if !until(t, func() bool { found = addresses.FindStringSubmatch(box.String()); return found != nil }) {
			t.Fatalf("the sandbox does not start: %s", box.String())
		}
		at := []string{"-t", topology, "-b", found[1], "-r", found[2]}
		projector, stopProjector := start("projector", append([]string{"run", "--data-dir", "data/projector", "--listen", "127.0.0.1:0", "--listen-file", "projector.address"}, at...)...)
		if err := os.WriteFile(filepath.Join(dir, "bad.jsonl"), []byte("not an event\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			append([]string{"producer", "generate", "--events", "300"}, at...),
			{"producer", "generate", "--events", "3", "--out", "events.jsonl"},
			append([]string{"producer", "send", "--rejects", "bad.rejects", "bad.jsonl"}, at...),
		} {
			if out, err := command(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil && !strings.Contains(string(out), "bad.rejects") {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
		if !until(t, func() bool {
			address, err := os.ReadFile(filepath.Join(dir, "projector.address"))
			status, _ := get("http://" + strings.TrimSpace(string(address)) + "/readyz")
			return err == nil && status == 200
		}) {
			t.Errorf("the projector is not ready: %s", projector.String())
		}
		checkPrivate(t, filepath.Join(dir, "projector.address"), nil)
		stopProjector()
		stopBox()
		// Parents of a data directory are not narrowed, and files of init never replaced.
		if err := os.RemoveAll(filepath.Join(dir, "made")); err != nil {
			t.Fatal(err)
		}
		if out, err := command(t.Context(), "processor", "init", "made/up").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		for _, name := range []string{"bad.rejects", "events.jsonl", "data/projector/FORMAT", "data/sandbox/registry.json", "data/sandbox/kafka", "made/up/topology.yaml"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
		if n := checkPrivate(t, dir, map[string]bool{dir: true, filepath.Join(dir, "data"): true, filepath.Join(dir, "bad.jsonl"): true}); n < 30 {
			t.Errorf("only %d files found", n)
		}
		widen(t, dir)
	}
}

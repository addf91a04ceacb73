package programs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring/kms"
	"millrace/pipeline/keyring/kms/kmstest"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

const sealedPeople = `
name: people
encryption: {key_topic: people.keys, subject: {Person: id}}
topics:
  people: {partitions: 1, types: [Person], envelope: none, id: id, key: id}
projections:
  person: {from: people, key: id, state: Person, on: {Person: {set: {id: id, email: email}}}, snapshots: people.snapshots}
`

// writePeople writes a topology with encryption.
func writePeople(t *testing.T, dir string) (file string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "schemas"), 0o700); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "topology.yaml")
	harness.Write(t, file, []byte(sealedPeople))
	harness.Write(t, filepath.Join(dir, "schemas", "Person.avsc"), []byte(`{"type": "record", "name": "Person", "fields": [
		{"name": "id", "type": "string", "default": ""}, {"name": "email", "type": "string", "default": "", "millrace.pii": true}]}`))
	return file
}

// produce runs the producer to its end, with the clients of KMS.
func produce(box *sandbox.Sandbox, in string, args ...string) (code int, stdout, stderr string) {
	var out, errs harness.Buffer
	env := &cli.Env{Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errs, Now: time.Now, Exit: func(int) {}, KMS: kms.Open}
	if box != nil {
		args = append(args, "-b", box.Brokers()[0])
	}
	code = env.Main(args, producer.Command)
	return code, out.String(), errs.String()
}

// The keys move from a file to Vault, and the old line is deleted. A projector waits for Vault,
// says so, and reads what was encrypted before and since.
func TestKeysMoveFromAFileToAKMS(t *testing.T) {
	dir := t.TempDir()
	file, keks := writePeople(t, dir), filepath.Join(dir, "kek")
	const old = "2026-11 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
	harness.Write(t, keks, []byte(old))
	box := harness.Sandbox(t)
	vault, host := kmstest.Vault(t, "hvs.of-this-test")
	step := func(in string, args ...string) string {
		t.Helper()
		code, out, errs := produce(box, in, args...)
		if code != cli.ExitOK {
			t.Fatalf("%v: exit code %d\n%s%s", args, code, out, errs)
		}
		return out
	}
	send := func(line string) {
		t.Helper()
		step(line, "send", "-t", file, "-r", box.RegistryURL(), "--kek-file", keks)
	}
	send(`{"id":"u-1","email":"anna@example.com"}`)
	code, line, errs := produce(nil, "", "new-kek", "--id", "2026-12", "--kms", "hcvault://"+host+"/transit/keys/millrace")
	if code != cli.ExitOK || !strings.HasPrefix(line, "2026-12 hcvault://"+host+"/transit/keys/millrace ") || errs != "" {
		t.Fatalf("exit code %d: %q %s", code, line, errs)
	}
	harness.Write(t, keks, []byte(old+line))
	harness.WantLines(t, step("", "rewrap", "-t", file, "--kek-file", keks), "2026-12 wraps 1, of which no other wraps 0")
	harness.WantLines(t, step("", "rewrap", "-t", file, "--kek-file", keks, "--retire", "2026-11"), "2026-12 wraps 1, of which no other wraps 1")
	harness.Write(t, keks, []byte(line))
	send(`{"id":"u-2","email":"bert@example.com"}`)

	vault.Fail(kmstest.Down, -1)
	p := runWithKMS(box, "run", "-t", file, "--sessions", "1", "--kek-file", keks, "--data-dir", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0", "--listen-file", filepath.Join(dir, "address"))
	defer p.stop(t)
	url := "http://" + awaitAddress(t, filepath.Join(dir, "address"))
	if want := "line 1: the key-encryption key 2026-12 cannot be unwrapped by hcvault://" + host + "/transit/keys/millrace: Vault answers 503 Service Unavailable: Vault is sealed"; !until(t, func() bool {
		status, body := get(url + "/readyz?verbose")
		return status == 503 && strings.Contains(body, want)
	}) {
		t.Error(p.output.String())
	}
	vault.Fail(kmstest.None, 0)
	for id, email := range map[string]string{"u-1": "anna@example.com", "u-2": "bert@example.com"} {
		if !until(t, func() bool {
			status, body := get(url + "/v1/projections/person/" + id)
			return status == 200 && strings.Contains(body, email)
		}) {
			t.Errorf("%s has no email:\n%s", id, p.output.String())
		}
	}
}

// runWithKMS starts the projector with the clients of KMS.
func runWithKMS(box *sandbox.Sandbox, args ...string) *program {
	return runIn(&cli.Env{KMS: kms.Open}, programs.Projector, box, args...)
}

// A KMS that refuses ends the program, with the line, the key and the advice.
func TestAKMSThatRefusesEndsTheProgram(t *testing.T) {
	dir := t.TempDir()
	file := writePeople(t, dir)
	box := harness.Sandbox(t)
	vault, host := kmstest.Vault(t, "hvs.of-this-test")
	code, line, errs := produce(nil, "", "new-kek", "--id", "a", "--kms", "hcvault://"+host+"/transit/keys/k")
	if code != cli.ExitOK {
		t.Fatal(errs)
	}
	keks := filepath.Join(dir, "kek")
	harness.Write(t, keks, []byte("# keys\n"+line))
	vault.Fail(kmstest.Denied, -1)
	want := keks + ": line 2: the key-encryption key a cannot be unwrapped by hcvault://" + host + "/transit/keys/k: refused: Vault answers 403 Forbidden: 1 error occurred: permission denied; the token (VAULT_TOKEN) is not valid"
	code, _, errs = produce(box, `{"id":"u-1","email":"anna@example.com"}`, "send", "-t", file, "-r", box.RegistryURL(), "--kek-file", keks)
	if code != cli.ExitFailure || !strings.Contains(errs, want) {
		t.Errorf("exit code %d: %s", code, errs)
	}
	p := runWithKMS(box, "run", "-t", file, "--kek-file", keks, "--data-dir", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0")
	if code := <-p.exit; code != cli.ExitFailure || !strings.Contains(p.output.String(), want) {
		t.Errorf("exit code %d: %s", code, p.output.String())
	}
	code, line, errs = produce(nil, "", "new-kek", "--id", "b", "--kms", "hcvault://"+host+"/transit/keys/k")
	if code != cli.ExitFailure || line != "" || !strings.Contains(errs, "wrapping a key: refused: Vault answers 403") {
		t.Errorf("exit code %d: %q %s", code, line, errs)
	}
	for text, args := range map[string][]string{
		"--id: an id is letters, digits":              {"--kms", "hcvault://" + host + "/transit/keys/k"},
		"--kms: the URI of the key of a KMS begins":   {"--id", "b"},
		"and has no user name, password or query":     {"--id", "b", "--kms", "hcvault://u:p@" + host + "/transit/keys/k"},
		"want aws-kms://arn:aws:kms:REGION:ACCOUNT:k": {"--id", "b", "--kms", "aws-kms://key"},
	} {
		if code, _, errs := produce(nil, "", append([]string{"new-kek"}, args...)...); code == cli.ExitOK || !strings.Contains(errs, text) {
			t.Errorf("%v: exit code %d: %s", args, code, errs)
		}
	}
}

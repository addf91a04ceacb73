package kafkatest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// pom lists the broker's jars.
//
//go:embed pom.xml
var pom []byte

// Version returns the version of Apache Kafka that [Start] starts.
func Version() string {
	var project struct {
		Version string `xml:"properties>kafka.version"`
	}
	if err := xml.Unmarshal(pom, &project); err != nil || project.Version == "" {
		panic(fmt.Sprintf("pom.xml has no kafka.version: %v", err)) // a bug: pom.xml is embedded
	}
	return project.Version
}

// fetchJars returns the directory of the jars, build/kafka/VERSION. The first call fetches
// them into a temporary directory, which it renames when it is complete. So interrupted
// and concurrent fetches are harmless.
func fetchJars(ctx context.Context) (string, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return "", fmt.Errorf("starting a Kafka broker needs Java 17 or newer: %w; install a JRE, or set KAFKA_BROKERS to a test cluster", err)
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "build", "kafka", Version())
	if complete(dir) {
		return dir, nil
	}
	if _, err := exec.LookPath("mvn"); err != nil {
		return "", fmt.Errorf("fetching the jars of the Kafka broker needs Maven: %w; install it, or set KAFKA_BROKERS to a test cluster", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "fetching-")
	if err != nil {
		return "", err
	}
	if err := fetchInto(ctx, tmp); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	if complete(dir) { // another test was faster
		return dir, os.RemoveAll(tmp)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(tmp, dir)); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, nil
}

// complete reports whether a directory has the jars of the embedded pom.xml.
func complete(dir string) bool {
	have, err := os.ReadFile(filepath.Join(dir, "pom.xml"))
	return err == nil && bytes.Equal(have, pom)
}

func fetchInto(ctx context.Context, dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "pom.xml"), pom, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", filepath.Join(dir, "pom.xml"),
		"dependency:copy-dependencies", "-DoutputDirectory="+dir, "-DincludeScope=runtime")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetching Apache Kafka %s with %v: %w\n%s", Version(), cmd.Args, err, out)
	}
	return nil
}

// moduleRoot returns the closest directory with a go.mod, starting from the working
// directory.
func moduleRoot() (string, error) {
	from, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := from; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod in %s or its parent directories", from)
		}
	}
}

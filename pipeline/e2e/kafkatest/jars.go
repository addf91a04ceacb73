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

// kafkaPOM lists the broker's jars.
//
//go:embed pom.xml
var kafkaPOM []byte

// apicurioPOM names the archive of the schema registry.
//
//go:embed apicurio.xml
var apicurioPOM []byte

// Version returns the version of Apache Kafka that [Start] starts.
func Version() string {
	var project struct {
		Version string `xml:"properties>kafka.version"`
	}
	if err := xml.Unmarshal(kafkaPOM, &project); err != nil || project.Version == "" {
		panic(fmt.Sprintf("pom.xml has no kafka.version: %v", err)) // a bug: pom.xml is embedded
	}
	return project.Version
}

// fetched is a Java program that Maven fetches.
type fetched struct {
	name string
	pom  []byte // its dependencies
	goal string // of the Maven dependency plugin: copy-dependencies or unpack-dependencies
}

// fetch returns the directory of the program, build/NAME. The first call fetches it into a
// temporary directory, which it renames when it is complete. So interrupted and
// concurrent fetches are harmless. instead names what to do without Java or Maven.
func (f fetched) fetch(ctx context.Context, instead string) (string, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return "", fmt.Errorf("starting %s needs Java 17 or newer: %w; install a JDK%s", f.name, err, instead)
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "build", f.name)
	if f.complete(dir) {
		return dir, nil
	}
	if _, err := exec.LookPath("mvn"); err != nil {
		return "", fmt.Errorf("fetching %s needs Maven: %w; install it%s", f.name, err, instead)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "fetching-")
	if err != nil {
		return "", err
	}
	if err := f.fetchInto(ctx, tmp); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	if f.complete(dir) { // another test was faster
		return dir, os.RemoveAll(tmp)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(tmp, dir)); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, nil
}

// complete reports whether a directory has what the pom lists.
func (f fetched) complete(dir string) bool {
	have, err := os.ReadFile(filepath.Join(dir, "pom.xml"))
	return err == nil && bytes.Equal(have, f.pom)
}

func (f fetched) fetchInto(ctx context.Context, dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "pom.xml"), f.pom, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", filepath.Join(dir, "pom.xml"),
		"dependency:"+f.goal, "-DoutputDirectory="+dir, "-DincludeScope=runtime")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetching %s with %v: %w\n%s", f.name, cmd.Args, err, out)
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

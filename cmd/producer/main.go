// Command producer is described by its own --help and in README.md.
package main

import (
	"os"

	"millrace/pipeline/app"
)

func main() {
	os.Exit(app.NewEnv().Main(os.Args[1:], app.Producer))
}

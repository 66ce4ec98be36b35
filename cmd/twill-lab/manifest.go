package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/test/lab"
)

func (a *app) apply() *cobra.Command {
	return a.onManifests("apply", "Put Kubernetes objects into the lab's cluster", "applied", (*lab.Lab).Apply)
}

func (a *app) delete() *cobra.Command {
	return a.onManifests("delete", "Take Kubernetes objects out of the lab's cluster", "deleted", (*lab.Lab).Delete)
}

func (a *app) onManifests(use, short, done string, f func(*lab.Lab, []lab.Object) ([]string, error)) *cobra.Command {
	var files []string
	c := &cobra.Command{Use: use + " -f FILE", Short: short, Args: exactly(0),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, _ []string) error {
			if len(files) == 0 {
				return usage(errors.New("name a file with -f"))
			}
			// All is read before anything is changed: a broken file changes nothing.
			objects, err := readManifests(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			names, err := f(l, objects)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), slices.Concat([]string{}, names), func(w io.Writer) {
				for _, name := range names {
					fmt.Fprintln(w, name, done)
				}
			})
		})}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or directory of manifests, - for standard input; may be repeated")
	return c
}

// readManifests reads all objects of the files, of the .yaml, .yml and .json files in directories, and of stdin for -.
func readManifests(stdin io.Reader, files []string) ([]lab.Object, error) {
	var objects []lab.Object
	for _, file := range files {
		var inside []string
		for _, ext := range []string{"yaml", "yml", "json"} {
			found, _ := filepath.Glob(filepath.Join(file, "*."+ext))
			inside = append(inside, found...)
		}
		if len(inside) > 0 {
			more, err := readManifests(stdin, inside)
			if err != nil {
				return nil, err
			}
			objects = append(objects, more...)
			continue
		}
		var data []byte
		var err error
		if file == "-" {
			file = "standard input"
			data, err = io.ReadAll(stdin)
		} else {
			data, err = os.ReadFile(file)
		}
		if err != nil {
			return nil, err
		}
		more, err := lab.ParseManifests(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		objects = append(objects, more...)
	}
	return objects, nil
}

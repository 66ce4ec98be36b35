// Package image makes container images without a container engine: a file tree becomes one layer of an archive
// that `ctr images import`, `docker load`, `podman load` and `skopeo copy oci-archive:` all read (OCI image layout
// specification 1.1, with the manifest.json of older Docker beside it). The same tree gives the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Image is one image for one architecture.
type Image struct {
	// Names are its references, such as "registry.example/twill:v1".
	Names []string
	// Arch is as GOARCH has it.
	Arch string
	// Entrypoint and Command are what a container runs.
	Entrypoint, Command []string
	// Labels are those of the image's configuration.
	Labels map[string]string
	// Root is the directory that becomes the image's file system. All files become root's.
	Root string
	// Compress makes the layer smaller (gzip), and takes some seconds.
	Compress bool
}

// Media types (OCI image specification 1.1, media types).
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// Write writes the archive in one step: a reader sees all of it or nothing.
func Write(path string, img Image) error {
	if len(img.Names) == 0 || img.Arch == "" {
		return fmt.Errorf("image %s: it needs a name and an architecture", path)
	}
	layer, err := os.CreateTemp(filepath.Dir(path), ".layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	content, compressed := sha256.New(), sha256.New()
	mediaType := typeLayer
	var sink io.Writer = io.MultiWriter(layer, compressed)
	var packer *gzip.Writer
	if img.Compress {
		mediaType += "+gzip"
		packer = gzip.NewWriter(sink)
		sink = packer
	}
	if err := writeTree(io.MultiWriter(sink, content), img.Root); err != nil {
		return fmt.Errorf("image of %s: %w", img.Root, err)
	}
	if packer != nil {
		if err := packer.Close(); err != nil {
			return err
		}
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}

	config, err := json.Marshal(map[string]any{
		"architecture": img.Arch, "os": "linux", "created": epoch.Format(time.RFC3339),
		"config": map[string]any{
			"Entrypoint": img.Entrypoint, "Cmd": img.Command, "WorkingDir": "/", "Labels": img.Labels,
			"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{digest(content.Sum(nil))}},
		"history": []any{map[string]any{"created": epoch.Format(time.RFC3339), "created_by": "twill test/image"}},
	})
	if err != nil {
		return err
	}
	layerDescriptor := descriptor{MediaType: mediaType, Digest: digest(compressed.Sum(nil)), Size: size}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest,
		"config": describe(typeConfig, config), "layers": []descriptor{layerDescriptor},
	})
	if err != nil {
		return err
	}
	var entries []descriptor
	for _, name := range img.Names {
		d := describe(typeManifest, manifest)
		d.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
		d.Platform = &platform{img.Arch, "linux"}
		entries = append(entries, d)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": entries})
	if err != nil {
		return err
	}
	docker, err := json.Marshal([]any{map[string]any{
		"Config": blobPath(digestOf(config)), "RepoTags": img.Names, "Layers": []string{blobPath(layerDescriptor.Digest)},
	}})
	if err != nil {
		return err
	}

	out, err := os.CreateTemp(filepath.Dir(path), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	w := tar.NewWriter(out)
	put := func(name string, size int64, from io.Reader) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: epoch, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := io.Copy(w, from)
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index}, {"manifest.json", docker},
		{blobPath(digestOf(config)), config}, {blobPath(digestOf(manifest)), manifest},
	} {
		if err := put(f.name, int64(len(f.data)), bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := put(blobPath(layerDescriptor.Digest), size, layer); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := out.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(out.Name(), path)
}

// epoch is when everything in an image was made, so that the same tree gives the same bytes.
var epoch = time.Unix(0, 0).UTC()

func digest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return digest(sum[:])
}

func blobPath(digest string) string { return "blobs/sha256/" + digest[len("sha256:"):] }

func describe(mediaType string, data []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: digestOf(data), Size: int64(len(data))}
}

// writeTree writes everything below root, sorted by name.
func writeTree(to io.Writer, root string) error {
	w := tar.NewWriter(to)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var link string
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		header.Name, header.ModTime, header.Format = filepath.ToSlash(name), epoch, tar.FormatPAX
		header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
		header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
		if d.IsDir() {
			header.Name += "/"
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}
